"""Window attention in its two forms against a dense band mask, and its cost and cache, which must not grow."""

import pytest
import torch

from icl_eval.models import Window
from icl_eval.models.mixers.window import FLEX_BLOCK, WindowCache, band_mask, blocked_window, flex_window

SHAPES = [(30, 30, 7), (300, 300, 130), (257, 300, 43), (40, 1000, 64), (384, 384, 128), (200, 200, 1), (5, 9, 1000)]
"""Queries, keys, window."""
every_shape = pytest.mark.parametrize(("T", "S", "w"), SHAPES)


def dense_mask(T: int, S: int, w: int) -> torch.Tensor:
    query, key = torch.arange(T)[:, None] + S - T, torch.arange(S)
    return (key <= query) & (key > query - w)


@every_shape
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_both_forms_equal_a_dense_band(T: int, S: int, w: int, kv_heads: int) -> None:
    q, k, v = torch.randn(2, T, 2, 16), torch.randn(2, S, kv_heads, 16), torch.randn(2, S, kv_heads, 16)
    scores = torch.einsum("bthd,bshd->bhts", q, k.repeat_interleave(2 // kv_heads, 2)) / 4
    weights = scores.masked_fill(~dense_mask(T, S, w), float("-inf")).softmax(-1)
    expected = torch.einsum("bhts,bshd->bthd", weights, v.repeat_interleave(2 // kv_heads, 2))
    torch.testing.assert_close(blocked_window(q, k, v, min(w, S)), expected)
    torch.testing.assert_close(flex_window(q, k, v, w), expected)


@every_shape
def test_block_mask_visits_the_blocks_that_hold_pairs_and_no_others(T: int, S: int, w: int) -> None:
    mask = band_mask(T, S, w, torch.device("cpu"))
    rows, columns = -(-T // FLEX_BLOCK), -(-S // FLEX_BLOCK)
    pairs = torch.zeros(rows * FLEX_BLOCK, columns * FLEX_BLOCK, dtype=torch.bool)
    pairs[:T, :S] = dense_mask(T, S, w)
    blocks = pairs.unflatten(1, (columns, -1)).unflatten(0, (rows, -1))
    assert torch.equal(mask.to_dense()[0, 0].bool(), blocks.any(1).any(-1))
    wholly = blocks.all(1).all(-1)
    for row in range(rows):
        visited = mask.full_kv_indices[0, 0, row, : mask.full_kv_num_blocks[0, 0, row]]
        assert set(visited.tolist()) == set(wholly[row].nonzero()[:, 0].tolist())


def test_cost_is_linear_whatever_the_form() -> None:
    for w in (32, 128, 1000):
        window = Window(width=64, num_heads=2, window=w)
        for backend, most in (("blocked", 2 * w), ("flex", w + 3 * FLEX_BLOCK)):
            executed = [
                window.flops_per_token(T, causal=False).state + window.masked_flops(T, backend=backend)
                for T in (16_384, 32_768)
            ]
            assert executed[0] == pytest.approx(executed[1], rel=0.04)
            assert executed[1] <= 4 * 64 * most * 1.01


def test_cache_holds_the_window_and_nothing_else() -> None:
    mixer = Window(width=32, num_heads=4, window=8).build()
    _, state = mixer(torch.randn(1, 500, 32))
    for _ in range(20):
        assert isinstance(state, WindowCache)
        for tensor in (state.k, state.v):
            assert tensor.shape[1] == 8
            assert tensor.untyped_storage().nbytes() == tensor.nbytes
        _, state = mixer.step(torch.randn(1, 32), state)
    assert state.length == 520


def test_flex_is_refused_where_it_does_not_run() -> None:
    mixer = Window(width=32, num_heads=2, window=8, backend="flex").build()
    with pytest.raises(ValueError, match=r"Window.backend = 'flex': needs a CUDA GPU .* got cpu and float32"):
        mixer(torch.randn(1, 20, 32))
    with pytest.raises(ValueError, match="backend = 'triton': must be 'auto' or 'flex' or 'blocked'"):
        Window(backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(("T", "S", "w", "kv_heads"), [(1000, 1000, 100, 4), (700, 1211, 512, 2), (2048, 2048, 128, 1)])
def test_flex_on_a_gpu_equals_the_blocked_form(T: int, S: int, w: int, kv_heads: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, T, 4, 64, device="cuda", requires_grad=True)
    k, v = (torch.randn(2, S, kv_heads, 64, device="cuda", requires_grad=True) for _ in range(2))
    weights = torch.randn(2, T, 4, 64, device="cuda")
    expected = blocked_window(q.double(), k.double(), v.double(), w)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), (q, k, v))
    y = flex_window(q.to(dtype), k.to(dtype), v.to(dtype), w)
    gradients = torch.autograd.grad((y * weights).sum(), (q, k, v))
    tolerance = 2e-3 if dtype == torch.float32 else 2e-2
    for got, want in zip((y, *gradients), (expected, *expected_gradients), strict=True):
        assert (got.double() - want.double()).norm() / want.double().norm() < tolerance
    assert band_mask(T, S, w, q.device) is band_mask(T, S, w, q.device)


@pytest.mark.gpu
def test_memory_on_a_gpu_is_linear() -> None:
    mixer = Window(width=256, num_heads=4, window=512).build().cuda()
    peaks = []
    for T in (16_384, 65_536):
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            mixer(torch.randn(1, T, 256, device="cuda"), return_state=False)[0].sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 5 * peaks[0]
