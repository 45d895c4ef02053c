"""The Triton kernels against a float64 reference: on a GPU in full, elsewhere in Triton's interpreter at tiny sizes.

The interpreter covers the algorithm in float32; bfloat16 products, pipelining and layouts need `pytest -m gpu`.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("triton")

from icl_eval.kernels import power_attention, power_attention_flops, power_attention_step
from icl_eval.kernels.power import launch
from tests.kernels.cases import Case, assert_close, outputs_and_gradients, relative_errors

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
BASE = Case(B=2, T=500, H=4, Hk=2, D=64, V=64, chunk_size=128)
SMALL = Case(B=1, T=140, H=2, Hk=1, D=16, V=16, chunk_size=128)
INTERPRETER_CASES = {
    "p2": SMALL,
    "p2-halves": SMALL.with_(D=32, V=16),
    "p2-none": SMALL.with_(normalization="none"),
    "p1": SMALL.with_(degree=1, normalization="none"),
    "p3": SMALL.with_(degree=3, normalization="none", stateful=False, T=70),
    "p4": SMALL.with_(degree=4, stateful=False, T=70),
    "no-gates": SMALL.with_(gated=False),
    "no-state": SMALL.with_(stateful=False),
    "padded-dims": SMALL.with_(D=10, V=5),
    "T1": SMALL.with_(T=1),
}
GPU_CASES = {
    "p2": BASE,
    "p2-d16": BASE.with_(D=16, V=16),
    "p2-d32": BASE.with_(D=32, V=32),
    "p2-d32-none": BASE.with_(D=32, V=32, normalization="none", gated=False),
    "p2-d32-T4097": BASE.with_(D=32, V=32, T=4097, B=1, chunk_size=512),
    "p2-d32-attention-form": BASE.with_(D=32, V=32, stateful=False, chunk_size=512),
    "p2-d128": BASE.with_(D=128, V=128, B=1),
    "p2-none": BASE.with_(normalization="none"),
    "p1": BASE.with_(degree=1, normalization="none"),
    "p3": BASE.with_(degree=3, normalization="none", stateful=False),
    "p4": BASE.with_(degree=4, stateful=False),
    "no-gates": BASE.with_(gated=False),
    "no-state": BASE.with_(stateful=False),
    "attention-form": BASE.with_(stateful=False, chunk_size=512),
    "attention-form-T2500": BASE.with_(T=2500, B=1, stateful=False, chunk_size=2500),
    "wide-values": BASE.with_(D=32, V=64),
    "padded-dims": BASE.with_(D=48, V=80),
    "T1": BASE.with_(T=1),
    "T63": BASE.with_(T=63),
    "T4097": BASE.with_(T=4097, B=1, chunk_size=1024),
}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def test_the_interpreter_agrees_with_the_reference() -> None:
    """Runs the tests named so in a process of their own: Triton reads its interpreter switch once, at import."""
    if INTERPRETED:
        pytest.skip("already interpreting")
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"{__file__}", "-k", "interpreted"],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"{len(INTERPRETER_CASES) + 5} passed" in result.stdout, result.stdout[-500:]


@pytest.mark.skipif(not INTERPRETED, reason="run by test_the_interpreter_agrees_with_the_reference")
@pytest.mark.parametrize("name", INTERPRETER_CASES)
def test_interpreted(name: str) -> None:
    case = INTERPRETER_CASES[name]
    inputs = case.inputs()
    expected = outputs_and_gradients(power_attention, case, inputs, backend="reference")
    got = outputs_and_gradients(power_attention, case, {key: x.float() for key, x in inputs.items()}, backend="triton")
    assert_close(got, expected, 1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="run by test_the_interpreter_agrees_with_the_reference")
@pytest.mark.parametrize("log_gate", [-100.0, float("-inf")])
def test_interpreted_closed_gates(log_gate: float) -> None:
    case = SMALL.with_(T=260)
    inputs = case.inputs()
    inputs["log_g"][:, 30:200] = log_gate
    expected = outputs_and_gradients(power_attention, case, inputs, backend="reference")
    got = outputs_and_gradients(power_attention, case, {key: x.float() for key, x in inputs.items()}, backend="triton")
    assert_close(got, expected, 1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="run by test_the_interpreter_agrees_with_the_reference")
def test_interpreted_step() -> None:
    from icl_eval.kernels.power.step import fused_step

    for case in (SMALL.with_(V=6), SMALL.with_(degree=3, normalization="none", D=5), SMALL.with_(gated=False)):
        x = case.inputs(dtype=torch.float32)
        token = [x[name][:, 0] for name in ("q", "k", "v")] + [x["log_g"][:, 0] if case.gated else None]
        for state in ((x["S"], x.get("z")), None):
            y, new = power_attention_step(*token, state, **case.options)
            got_y, got = fused_step(*token, state, scale=case.D**-0.5, **case.options)
            expected = {"y": y, "S": new[0]} | ({} if new[1] is None else {"z": new[1]})
            found = {"y": got_y, "S": got[0]} | ({} if got[1] is None else {"z": got[1]})
            assert_close(found, expected, 1e-5)


@pytest.mark.skipif(not INTERPRETED, reason="run by test_the_interpreter_agrees_with_the_reference")
@pytest.mark.parametrize(("T", "chunk"), [(2500, 2500), (2500, 1280)])
def test_interpreted_scans_over_gates_take_chunks_of_several_blocks(T: int, chunk: int) -> None:
    B, H = 2, 3
    generator = torch.Generator().manual_seed(0)
    q = torch.zeros(B, T, H, 16)
    log_g = -torch.rand(B, T, H, generator=generator) / 100
    c = launch.call_of(q, q, q, log_g, 16, 2, True, "tf32x3", chunk)
    assert c.chunk > launch.GATES_BLOCK

    def by_chunk(x: torch.Tensor) -> torch.Tensor:
        """[B·H, padded] as [B·H, chunks, chunk], zero past the end."""
        return torch.nn.functional.pad(x[:, :T].double(), (0, c.padded - T)).view(B * H, c.n_chunks, c.chunk)

    def until_end(x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1).cumsum(-1).flip(-1)

    log2_g = by_chunk(log_g.transpose(1, 2).reshape(B * H, T)) / math.log(2)
    got = launch.running_gates(log_g, c, q)
    running = by_chunk(got.high.double() + got.low.double())
    torch.testing.assert_close(running, by_chunk(log2_g.cumsum(-1).view(B * H, -1)), rtol=1e-12, atol=1e-12)
    found = {"from_start": by_chunk(got.from_start), "to_end": by_chunk(got.to_end)}
    expected = {"from_start": log2_g.cumsum(-1).exp2(), "to_end": (until_end(log2_g) - log2_g).exp2()}
    assert_close(found, {name: by_chunk(x.view(B * H, -1)) for name, x in expected.items()}, 1e-6)

    key, later, query = (torch.randn(B * H, c.padded, generator=generator) for _ in range(3))
    across = torch.randn(B * H, c.n_chunks, generator=generator)
    dlog_g = torch.full((B, T, H), torch.nan)
    launch.gate_gradient(key, later, query, across, log_g, dlog_g, c)
    after = across.double() + by_chunk(later).sum(-1)
    gradient = after[..., None] + until_end(by_chunk(query) - by_chunk(key))
    assert_close(
        {"dlog_g": dlog_g.transpose(1, 2).reshape(B * H, T).double()}, {"dlog_g": gradient.view(B * H, -1)[:, :T]}, 1e-6
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", GPU_CASES)
def test_gpu(name: str, dtype: str) -> None:
    """Float32 to 1e-4; half precision to 1e-2 or twice what the reference loses when computed in that precision."""
    case = GPU_CASES[name]
    inputs = case.inputs(dtype=DTYPES[dtype], device="cuda")
    expected = outputs_and_gradients(
        power_attention, case, {key: x.double() for key, x in inputs.items()}, backend="reference"
    )
    got = outputs_and_gradients(power_attention, case, inputs, backend="triton")
    again = outputs_and_gradients(power_attention, case, inputs, backend="triton")
    assert all(torch.equal(got[key], again[key]) for key in got), "repeated runs differ"
    errors = relative_errors(got, expected)
    allowed = dict.fromkeys(errors, 1e-4)
    if dtype != "fp32":
        same_precision = relative_errors(
            outputs_and_gradients(power_attention, case, inputs, backend="reference"), expected
        )
        allowed = {key: max(1e-2, 2 * error) for key, error in same_precision.items()}
    bad = {key: (error, allowed[key]) for key, error in errors.items() if not error <= allowed[key]}
    assert not bad, f"(error, allowed): {bad}"


@pytest.mark.gpu
@pytest.mark.parametrize("magnitude", [1e-2, 1e2])
@pytest.mark.parametrize("dtype", DTYPES)
def test_gpu_large_and_small_inputs(dtype: str, magnitude: float) -> None:
    case = BASE.with_(stateful=False)
    inputs = case.inputs()
    inputs = {key: (x * magnitude if key in "qkv" else x) for key, x in inputs.items()}
    inputs = {key: x.to(DTYPES[dtype] if key in "qkv" else torch.float32).cuda() for key, x in inputs.items()}
    wide = {key: x.double() for key, x in inputs.items()}
    expected = outputs_and_gradients(power_attention, case, wide, backend="reference")
    got = outputs_and_gradients(power_attention, case, inputs, backend="triton")
    assert_close({"y": got["y"]}, {"y": expected["y"]}, 1e-4 if dtype == "fp32" else 1e-2)
    assert all(x.isfinite().all() for x in got.values())


@pytest.mark.gpu
@pytest.mark.parametrize("log_gate", [0.0, -20.0, float("-inf")])
def test_gpu_runs_of_gates(log_gate: float) -> None:
    """To 1e-4, or twice what the reference loses in float32: rows that see one token alone have gradients near zero
    that are differences of large numbers.
    """
    case = BASE.with_(T=2048, B=1, chunk_size=1024)
    inputs = case.inputs()
    inputs["log_g"][:, 100:1500] = log_gate
    expected = outputs_and_gradients(power_attention, case, inputs, backend="reference")
    single = {key: x.float().cuda() for key, x in inputs.items()}
    same_precision = relative_errors(
        outputs_and_gradients(power_attention, case, single, backend="reference"), expected
    )
    errors = relative_errors(outputs_and_gradients(power_attention, case, single, backend="triton"), expected)
    bad = {key: error for key, error in errors.items() if not error <= max(1e-4, 2 * same_precision[key])}
    assert not bad, f"relative errors: {bad}"


@pytest.mark.gpu
def test_gpu_chunks_and_splits_change_nothing() -> None:
    case = BASE.with_(T=1000)
    inputs = {key: x.float().cuda() for key, x in case.inputs().items()}
    whole = outputs_and_gradients(power_attention, case, inputs, backend="triton", chunk_size=1024)

    def in_two_parts(q, k, v, log_g, *, initial_state, **options):
        outputs, state = [], initial_state
        for part in (slice(None, 333), slice(333, None)):
            y, state = power_attention(
                q[:, part], k[:, part], v[:, part], log_g[:, part], initial_state=state, **options
            )
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    for chunk_size in (128, 384):
        assert_close(
            outputs_and_gradients(power_attention, case, inputs, backend="triton", chunk_size=chunk_size), whole, 1e-5
        )
    assert_close(outputs_and_gradients(in_two_parts, case, inputs, backend="triton"), whole, 1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("degree", [1, 2, 3])
def test_gpu_steps_match_the_sequence(degree: int) -> None:
    case = BASE.with_(T=20, D=32, V=32, degree=degree, normalization="row_sum" if degree == 2 else "none")
    x = {key: value.cuda() for key, value in case.inputs(dtype=torch.float32).items()}
    state = (x["S"], x.get("z"))
    with torch.no_grad():
        expected, last = power_attention(
            x["q"],
            x["k"],
            x["v"],
            x["log_g"],
            **case.options,
            initial_state=state,
            return_state=True,
            backend="chunked",
        )
        outputs = []
        for t in range(case.T):
            token = [x[name][:, t] for name in ("q", "k", "v", "log_g")]
            y, state = power_attention_step(*token, state, **case.options)
            outputs.append(y)
    assert_close({"y": torch.stack(outputs, 1), "S": state[0]}, {"y": expected, "S": last[0]}, 1e-5)


@pytest.mark.gpu
def test_gpu_compiles_checkpoints_and_counts() -> None:
    case = BASE.with_(stateful=False, T=512, chunk_size=None)
    inputs = {key: x.cuda() for key, x in case.inputs(dtype=torch.bfloat16).items()}
    expected = outputs_and_gradients(power_attention, case, inputs, backend="triton")
    compiled = torch.compile(power_attention, fullgraph=True)
    got = outputs_and_gradients(compiled, case, inputs, backend="triton")
    assert_close(got, expected, 1e-3)

    def checkpointed(*arguments, **options):
        return torch.utils.checkpoint.checkpoint(power_attention, *arguments, use_reentrant=False, **options)

    got = outputs_and_gradients(checkpointed, case, inputs, backend="triton")
    assert all(torch.equal(got[key], expected[key]) for key in got)

    with FlopCounterMode(display=False) as counter:
        power_attention(**inputs, backend="triton", chunk_size=128)
    counted = power_attention_flops(512, head_dim=64, value_dim=64, degree=2, chunk_size=128, kv_groups=2)
    assert counter.get_total_flops() == pytest.approx(2 * 4 * counted)


@pytest.mark.gpu
def test_gpu_graphs_and_non_contiguous_inputs() -> None:
    case = BASE.with_(stateful=False)
    inputs = {key: x.cuda() for key, x in case.inputs(dtype=torch.bfloat16).items()}
    strided = {key: x.transpose(1, 2).contiguous().transpose(1, 2) for key, x in inputs.items()}
    expected = power_attention(**inputs, backend="triton", chunk_size=128)
    assert torch.equal(power_attention(**strided, backend="triton", chunk_size=128), expected)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = power_attention(**strided, backend="triton", chunk_size=128)
    y.fill_(float("nan"))
    graph.replay()
    assert torch.equal(y, expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_gpu_other_than_the_current_one() -> None:
    case = BASE.with_(T=300)
    results = [
        outputs_and_gradients(power_attention, case, case.inputs(dtype=torch.bfloat16, device=device), backend="triton")
        for device in ("cuda:0", "cuda:1")
    ]
    assert_close({name: x.cuda(0) for name, x in results[1].items()}, results[0], 1e-6)


@pytest.mark.gpu
def test_gpu_falls_back_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    from icl_eval.kernels.power import backends

    def broken(*_: object) -> float:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(backends, "self_check", broken)
    monkeypatch.setattr(backends, "_a_check_failed", False)
    backends._checked.cache_clear()
    inputs = {key: x.cuda() for key, x in BASE.with_(stateful=False).inputs(dtype=torch.float32).items()}
    with pytest.warns(RuntimeWarning, match=r"falls back to backend='chunked'.*no such instruction"):
        y = power_attention(**inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        power_attention(**inputs)
    backends._checked.cache_clear()
    torch.testing.assert_close(y, power_attention(**inputs, backend="chunked"))


@pytest.mark.parametrize(
    ("errors", "works", "warned"),
    [
        ([0.001], True, []),
        ([0.5, 0.001], True, ["portable Triton kernels, not those for Hopper.*a self-check is off by 5.0e-01"]),
        ([RuntimeError("no ptxas\nmore"), 0.5], False, ["portable Triton kernels.*no ptxas$", "'chunked'.*5.0e-01"]),
    ],
)
def test_what_fails_is_set_aside_for_the_next_best(
    errors: list[float | Exception], works: bool, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from icl_eval.kernels.power import backends

    def self_check(*_: object) -> float:
        outcome = errors.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(backends, "self_check", self_check)
    monkeypatch.setattr(launch, "architecture", lambda device: "sm90")
    monkeypatch.setattr(launch, "hopper_kernels", lambda: object())
    monkeypatch.setattr(launch, "_hopper_trusted", True)
    monkeypatch.setattr(backends, "_a_check_failed", False)
    backends._checked.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert backends._checked(torch.device("cpu"), torch.bfloat16, 64, 64, 1, 2, "row_sum", True) is works
    backends._checked.cache_clear()
    assert len(caught) == len(warned)
    assert not errors
    assert all(re.search(pattern, str(w.message)) for pattern, w in zip(warned, caught, strict=True))
    assert launch.any_on_hopper(60, 64, 2, torch.bfloat16, torch.device("cpu")) is (len(warned) == 0)
    assert not launch.any_on_hopper(64, 32, 2, torch.bfloat16, torch.device("cpu"))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.empty(1, 8, 1, 64, dtype=torch.bfloat16)
    assert backends.works(q, q, 2, "row_sum", True) is works


@pytest.mark.skipif(INTERPRETED, reason="in the interpreter the kernels take CPU tensors")
def test_triton_on_the_cpu_is_refused_with_the_reason() -> None:
    inputs = Case(stateful=False).inputs(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"backend='triton' cannot be used: the kernels need a CUDA GPU.*'chunked'"):
        power_attention(**inputs, backend="triton")
