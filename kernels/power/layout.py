"""Triton kernels that lay out what the main kernels read: transposed copies, running gates, and their gradient."""

from __future__ import annotations

import triton
import triton.language as tl

from icl_eval.kernels.power.compiled import RUN_TIME_SIZES


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def transpose_kernel(
    x_ptr, out_ptr, stride_b, stride_t, stride_h, H, T, T_padded, D: tl.constexpr, BLOCK: tl.constexpr
):
    """x [B, T, H, D] to out [B·H, D, T_padded], zero past T. Grid (T_padded / BLOCK, B·H)."""
    head = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    d = tl.arange(0, D)
    source = x_ptr + head // H * stride_b + head % H * stride_h
    x = tl.load(source + t[:, None].to(tl.int64) * stride_t + d[None, :], mask=t[:, None] < T, other=0.0)
    tl.store(
        out_ptr + head * D * T_padded + d[:, None] * T_padded + t[None, :], tl.trans(x).to(out_ptr.dtype.element_ty)
    )


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def running_gates_kernel(
    log_g_ptr,
    high_ptr,
    low_ptr,
    from_start_ptr,
    to_end_ptr,
    stride_b,
    stride_t,
    stride_h,
    H,
    T,
    T_padded,
    chunk,
    CLOSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Running sums of log2 gates inside each chunk: log_g [B, T, Hk] to high and low parts [B·Hk, T_padded].

    Also the factors of the gates from the chunk's start up to each token, and after it to the chunk's end. Summed in
    float64. Grid (chunks, B·Hk).
    """
    head = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * chunk
    source = log_g_ptr + head // H * stride_b + head % H * stride_h
    before = tl.full((), 0.0, tl.float64)
    for first in range(start, start + chunk, BLOCK):
        t = first + tl.arange(0, BLOCK)
        inside = t < start + chunk
        gates = tl.load(source + t.to(tl.int64) * stride_t, mask=inside & (t < T), other=0.0).to(tl.float64)
        gates = tl.maximum(gates, CLOSED) * 1.4426950408889634
        total = before + tl.cumsum(gates, 0)
        high = total.to(tl.float32)
        tl.store(high_ptr + head * T_padded + t, high, mask=inside)
        tl.store(low_ptr + head * T_padded + t, (total - high.to(tl.float64)).to(tl.float32), mask=inside)
        tl.store(from_start_ptr + head * T_padded + t, tl.exp2(high), mask=inside)
        before += tl.sum(gates, 0)
    # The gates after each token are summed from the end, which loses nothing to a subtraction.
    after = tl.full((), 0.0, tl.float64)
    blocks = tl.cdiv(chunk, BLOCK)
    for back in range(blocks):
        t = start + (blocks - 1 - back) * BLOCK + tl.arange(0, BLOCK)
        inside = t < start + chunk
        gates = tl.load(source + t.to(tl.int64) * stride_t, mask=inside & (t < T), other=0.0).to(tl.float64)
        gates = tl.maximum(gates, CLOSED) * 1.4426950408889634
        later = after + tl.cumsum(gates, 0, reverse=True) - gates
        tl.store(to_end_ptr + head * T_padded + t, tl.exp2(later.to(tl.float32)), mask=inside)
        after += tl.sum(gates, 0)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def gate_gradient_kernel(
    key_ptr,
    later_ptr,
    query_ptr,
    across_ptr,
    log_g_ptr,
    dlog_g_ptr,
    stride_b,
    stride_t,
    stride_h,
    H,
    T,
    T_padded,
    chunk,
    GROUPS: tl.constexpr,
    CLOSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradient of the log gates, [B, T, Hk] contiguous in float32.

    A gate of a chunk acts on what later tokens of the chunk read (their queries' share, ``query`` [B·H, T_padded]), is
    spared by what is written after it (the keys' share, ``key`` [B·Hk, T_padded]), and acts on what later chunks read:
    of the chunk's own keys (``later`` [B·Hk, T_padded]) and, across the chunk, of earlier ones (``across``
    [B·Hk, chunks]). Restarting at each chunk keeps rounding errors from adding up over the sequence. Grid
    (chunks, B·Hk).
    """
    head = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0)
    after = tl.load(across_ptr + head * tl.num_programs(0) + n)
    start = n * chunk
    offset = head // H * stride_b + head % H * stride_h
    blocks = tl.cdiv(chunk, BLOCK)
    for block in range(blocks):
        t = start + block * BLOCK + tl.arange(0, BLOCK)
        inside = (t < start + chunk) & (t < T)
        after += tl.sum(tl.load(later_ptr + head * T_padded + t, mask=inside, other=0.0), 0)
    for back in range(blocks):
        t = start + (blocks - 1 - back) * BLOCK + tl.arange(0, BLOCK)
        inside = (t < start + chunk) & (t < T)
        change = -tl.load(key_ptr + head * T_padded + t, mask=inside, other=0.0)
        for g in range(GROUPS):
            change += tl.load(query_ptr + (head * GROUPS + g) * T_padded + t, mask=inside, other=0.0)
        gradient = after + tl.cumsum(change, 0, reverse=True)
        log_g = tl.load(log_g_ptr + offset + t.to(tl.int64) * stride_t, mask=inside, other=0.0)
        address = dlog_g_ptr + (head // H * T + t) * H + head % H
        tl.store(address, tl.where(log_g < CLOSED, 0.0, gradient), mask=inside)
        after += tl.sum(change, 0)
