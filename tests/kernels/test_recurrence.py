"""The chunked recurrence against the recurrence itself, one token at a time, in float64."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from icl_eval.kernels.recurrence import linear_recurrence, linear_recurrence_flops

DECAYS = ["none", "scalar", "vector", "closed"]
every_kind = pytest.mark.parametrize(("decay", "delta"), list(itertools.product(DECAYS, [False, True])))


def inputs(T: int, decay: str, delta: bool, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(T)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    B, H, K, V = 2, 3, 8, 5
    q, k, v, key = draw(B, T, H, K), draw(B, T, H, K), draw(B, T, H, V), F.normalize(draw(B, T, H, K), dim=-1)
    columns = {"none": 0, "scalar": 1, "vector": K, "closed": 1}[decay]
    log_decay = F.logsigmoid(draw(B, T, H, columns)) if columns else None
    if log_decay is not None and decay == "closed":
        log_decay[:, ::3] = float("-inf")
    beta = draw(B, T, H, 1).sigmoid()
    correction = {"a": key, "b": -beta * key} if delta else {"a": None, "b": None}
    return {"q": q, "k": k, "v": v, "log_decay": log_decay, **correction, "initial_state": draw(B, H, K, V)}


def one_by_one(q, k, v, log_decay, a, b, initial_state):  # type: ignore[no-untyped-def]
    state, outputs = initial_state, []
    for t in range(q.shape[1]):
        new = state if log_decay is None else log_decay[:, t].exp()[..., None] * state
        if a is not None:
            new = new + b[:, t, :, :, None] * torch.einsum("bhk,bhkv->bhv", a[:, t], state)[:, :, None]
        state = new + k[:, t, :, :, None] * v[:, t, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, dim=1), state


@every_kind
@pytest.mark.parametrize("T", [1, 16, 37])
@pytest.mark.parametrize("chunk", [None, 5])
def test_chunks_equal_the_recurrence(decay: str, delta: bool, T: int, chunk: int | None) -> None:
    given = inputs(T, decay, delta)
    y, state = linear_recurrence(**given, chunk_size=chunk)
    expected, expected_state = one_by_one(**given)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, expected_state)


@pytest.mark.parametrize("decay", ["none", "scalar", "vector"])
def test_gradients_equal_the_recurrence(decay: str) -> None:
    given = {name: x if x is None else x.requires_grad_() for name, x in inputs(21, decay, True).items()}
    leaves = [x for x in given.values() if x is not None]
    loss = [sum((z**2).sum() for z in form(**given)) for form in (linear_recurrence, one_by_one)]
    for got, want in zip(*(torch.autograd.grad(value, leaves) for value in loss), strict=True):
        torch.testing.assert_close(got, want)


@every_kind
def test_a_cut_anywhere_changes_nothing(decay: str, delta: bool) -> None:
    given = inputs(50, decay, delta)
    whole, state = linear_recurrence(**given)
    parts, carried = [], given.pop("initial_state")
    for start, end in ((0, 1), (1, 18), (18, 50)):
        part = {name: None if x is None else x[:, start:end] for name, x in given.items()}
        y, carried = linear_recurrence(**part, initial_state=carried)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)
    torch.testing.assert_close(carried, state)


def test_half_precision_is_computed_in_float32() -> None:
    given = inputs(100, "vector", True, torch.bfloat16)
    y, state = linear_recurrence(**given)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    _, expected = one_by_one(**{name: x.double() for name, x in given.items()})
    assert (state - expected).norm() / expected.norm() < 1e-5


@pytest.mark.parametrize(("vector", "delta"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("T", [1, 10, 100, 128])
def test_flops_are_those_executed(T: int, vector: bool, delta: bool) -> None:
    given = inputs(T, "vector" if vector else "scalar", delta)
    with FlopCounterMode(display=False) as counter:
        linear_recurrence(**given)
    declared = linear_recurrence_flops(T, key_dim=8, value_dim=5, delta=delta, vector_decay=vector, causal=False)
    c = min(16 if vector else 64, T)
    # The counter has no entry for the triangular systems.
    solve = -(-T // c) * c * (c - 1) * (8 + 5) if delta else 0
    assert 2 * 3 * (declared - solve) == counter.get_total_flops()
    causal = linear_recurrence_flops(T, key_dim=8, value_dim=5, delta=delta, vector_decay=vector)
    assert causal == declared if T == 1 else causal < declared
