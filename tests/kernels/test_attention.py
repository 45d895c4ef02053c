"""Reference, chunked and recurrent forms of power attention agree: outputs, states and every gradient."""

from __future__ import annotations

import pytest
import torch

from icl_eval.kernels import power_attention, power_attention_step
from tests.kernels.cases import Case, assert_close, outputs_and_gradients

TOLERANCE = 1e-10  # of float64: rows of few and small weights have condition numbers of 1e4 and more

CASES = {
    "p2": Case(),
    "p1": Case(degree=1, normalization="none"),
    "p2-none": Case(normalization="none"),
    "p3": Case(degree=3, normalization="none", D=4),
    "p4": Case(degree=4, D=4),
    "no-gates": Case(gated=False),
    "no-state": Case(stateful=False),
    "no-gates-no-state": Case(gated=False, stateful=False),
    "grouped-heads": Case(H=4, Hk=2),
    "one-kv-head": Case(H=3, Hk=1),
    "wide-values": Case(D=4, V=9),
    "narrow-values": Case(D=9, V=3),
    "T1": Case(T=1),
    "T63": Case(T=63),
    "T200": Case(T=200, B=1),
    "whole-sequence-chunk": Case(chunk_size=1000),
    "single-token-chunks": Case(T=9, chunk_size=1),
    "default-chunk": Case(T=200, B=1, chunk_size=None),
}


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, TOLERANCE), (torch.float32, 2e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize("name", CASES)
def test_chunked_matches_reference(name: str, dtype: torch.dtype, tolerance: float) -> None:
    case = CASES[name]
    inputs = case.inputs()
    expected = outputs_and_gradients(power_attention, case, inputs, backend="reference")
    got = outputs_and_gradients(
        power_attention, case, {key: x.to(dtype) for key, x in inputs.items()}, backend="chunked"
    )
    assert all(x.dtype == dtype for x in got.values())
    assert_close(got, expected, tolerance)


@pytest.mark.parametrize("name", ["p2", "p1", "p3", "p4", "no-gates", "no-state", "grouped-heads", "wide-values"])
def test_steps_match_reference(name: str) -> None:
    case = CASES[name].with_(T=11)

    def recurrent(q, k, v, log_g=None, *, initial_state=None, return_state=False, chunk_size=None, **options):
        state, outputs = initial_state, []
        for t in range(q.shape[1]):
            gate = None if log_g is None else log_g[:, t]
            y, state = power_attention_step(q[:, t], k[:, t], v[:, t], gate, state, **options)
            outputs.append(y)
        return (torch.stack(outputs, 1), state) if return_state else torch.stack(outputs, 1)

    inputs = case.inputs()
    expected = outputs_and_gradients(power_attention, case, inputs, backend="reference")
    assert_close(outputs_and_gradients(recurrent, case, inputs), expected, TOLERANCE)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
@pytest.mark.parametrize("split", [1, 16, 40, 64])
def test_splitting_a_sequence_changes_nothing(backend: str, split: int) -> None:
    case = Case(H=4)

    def in_two_parts(q, k, v, log_g, *, initial_state, **options):
        state, outputs = initial_state, []
        for part in (slice(None, split), slice(split, None)):
            y, state = power_attention(
                q[:, part], k[:, part], v[:, part], log_g[:, part], initial_state=state, **options
            )
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    inputs = case.inputs()
    whole = outputs_and_gradients(power_attention, case, inputs, backend=backend)
    assert_close(outputs_and_gradients(in_two_parts, case, inputs, backend=backend), whole, TOLERANCE)


def test_chunk_size_changes_nothing() -> None:
    case, inputs = Case(T=100), Case(T=100).inputs()
    expected = outputs_and_gradients(power_attention, case, inputs, chunk_size=100)
    for chunk_size in (1, 7, 32, 64, 99):
        got = outputs_and_gradients(power_attention, case, inputs, chunk_size=chunk_size)
        assert_close(got, expected, TOLERANCE)


@pytest.mark.parametrize("log_gate", [0.0, -20.0, -100.0, float("-inf")])
@pytest.mark.parametrize("chunk_size", [64, 256])
def test_long_runs_of_closed_and_open_gates_stay_accurate(log_gate: float, chunk_size: int) -> None:
    case = Case(T=512, B=1, D=4, V=4, chunk_size=chunk_size)
    inputs = case.inputs()
    inputs["log_g"][:, 64:320] = log_gate
    expected = outputs_and_gradients(power_attention, case, inputs, backend="reference")
    assert all(x.isfinite().all() for x in expected.values())
    got = outputs_and_gradients(
        power_attention, case, {name: x.float() for name, x in inputs.items()}, backend="chunked"
    )
    assert_close(got, expected, 5e-5)


def test_a_closed_gate_forgets_everything_before_it() -> None:
    case = Case(T=40, stateful=False)
    inputs = case.inputs()
    inputs["log_g"][:, 21] = float("-inf")
    changed = inputs | {"v": inputs["v"].clone()}
    changed["v"][:, :21] += 100
    y, y_changed = (power_attention(x["q"], x["k"], x["v"], x["log_g"], chunk_size=16) for x in (inputs, changed))
    torch.testing.assert_close(y[:, 21:], y_changed[:, 21:], rtol=0, atol=0)
    assert not torch.equal(y[:, :21], y_changed[:, :21])


@pytest.mark.parametrize("magnitude", [1e-2, 1e2])
@pytest.mark.parametrize("degree", [2, 4])
def test_row_sums_survive_large_and_small_inputs(degree: int, magnitude: float) -> None:
    case = Case(degree=degree, D=4, stateful=False)
    inputs = case.inputs()
    inputs |= {name: inputs[name] * magnitude for name in ("q", "k", "v")}
    expected = outputs_and_gradients(power_attention, case, inputs, backend="reference")
    got = outputs_and_gradients(
        power_attention, case, {name: x.float() for name, x in inputs.items()}, backend="chunked"
    )
    assert_close(got, expected, 2e-5)


@pytest.mark.parametrize("backend", ["reference", "chunked"])
def test_rows_without_weight_are_zero_with_zero_gradients(backend: str) -> None:
    case = Case(T=40, stateful=False)
    inputs = case.inputs()
    inputs["k"][:, :20] = 0  # the first rows have nothing to weigh
    inputs["q"][:, 30] = 0
    got = outputs_and_gradients(power_attention, case, inputs, backend=backend)
    empty = [*range(20), 30]
    assert all(x.isfinite().all() for x in got.values())
    assert not got["y"][:, empty].any()
    assert not got["dq"][:, empty].any()
    assert got["y"][:, 20:30].all()


def test_degree_one_is_gated_linear_attention() -> None:
    inputs = Case(T=5, B=1, H=1, Hk=1, stateful=False).inputs()
    q, k, v, gates = (inputs[name][0, :, 0] for name in ("q", "k", "v", "log_g"))
    state, expected = torch.zeros(8, 8, dtype=torch.float64), []
    for t in range(5):
        state = gates[t].exp() * state + torch.outer(k[t], v[t])
        expected.append(q[t] @ state)
    y = power_attention(**inputs, degree=1, scale=1.0, normalization="none", chunk_size=2)
    torch.testing.assert_close(y[0, :, 0], torch.stack(expected))


def test_scale_defaults_to_inverse_root_of_head_dim_and_cancels_in_the_row_sum() -> None:
    inputs = Case(stateful=False).inputs()
    options = {"normalization": "none", "degree": 2}
    torch.testing.assert_close(
        power_attention(**inputs, **options), power_attention(**inputs, **options, scale=1.0) / 8
    )
    torch.testing.assert_close(power_attention(**inputs), power_attention(**inputs, scale=3.0))


def test_gradients_of_the_chunked_form_match_finite_differences() -> None:
    case = Case(B=1, T=7, H=2, Hk=1, D=3, V=2, chunk_size=3)
    x = {name: value.requires_grad_() for name, value in case.inputs().items()}

    def function(q, k, v, log_g, state, normalizer):
        y, final = power_attention(q, k, v, log_g, initial_state=(state, normalizer), return_state=True, chunk_size=3)
        return y, *final

    assert torch.autograd.gradcheck(function, tuple(x.values()))


def test_low_precision_inputs_are_computed_in_float32() -> None:
    case = Case(stateful=False)
    inputs = {name: x.bfloat16() if name != "log_g" else x.float() for name, x in case.inputs().items()}
    y = power_attention(**inputs)
    exact = power_attention(**{name: x.double() for name, x in inputs.items()})
    assert y.dtype == torch.bfloat16
    assert (y.double() - exact).norm() / exact.norm() < 2**-8


def _tensors(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    return Case(stateful=False).inputs(dtype=torch.float32) | changes


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"degree": 3}, "degree must be even with normalization='row_sum'.* got 3"),
        ({}, {"degree": 0}, "degree must be an integer of at least 1, got 0"),
        ({}, {"normalization": "rowsum"}, "normalization must be one of .*got 'rowsum'; did you mean 'row_sum'"),
        ({}, {"backend": "chunk"}, "backend must be one of .*got 'chunk'; did you mean 'chunked'"),
        ({}, {"chunk_size": 0}, "chunk_size must be an integer of at least 1 token, got 0"),
        ({"q": torch.zeros(2, 65, 3, 8)}, {}, "q's heads must be a multiple of k's 2, got 3"),
        ({"q": torch.zeros(2, 65, 2, 4)}, {}, "k must have q's head_dim 4, got 8"),
        ({"k": torch.zeros(2, 64, 2, 8)}, {}, r"k must have q's \('B', 'T'\) = \(2, 65\), got \(2, 64\)"),
        ({"v": torch.zeros(2, 65, 1, 8)}, {}, "v must have k's 2 heads, got 1"),
        ({"v": torch.zeros(2, 65, 2, 8).half()}, {}, "v must have the floating-point dtype of q"),
        ({"log_g": torch.zeros(2, 65)}, {}, r"log_g must have shape \(2, 65, 2\), got \(2, 65\)"),
        ({"log_g": torch.zeros(2, 65, 2).half()}, {}, "log_g must be float32 or float64, got torch.float16"),
        ({}, {"initial_state": (torch.zeros(2, 2, 36, 7), None)}, r"S must be .* of shape \(2, 2, 36, 8\)"),
        ({}, {"initial_state": (torch.zeros(2, 2, 36, 8), None)}, "z must be given"),
    ],
)
def test_bad_arguments(changes: dict, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power_attention(**_tensors(**changes), **options)
