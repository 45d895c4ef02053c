"""Triton kernel of the forward pass: intra-chunk attention and query_state in one, normalised.

For degree 2 the query needs no expansion in memory: φ(q)·S = Σ_i q_i (q_j≥ S[i, j≥]), a matrix product for each i whose
left operand is the tile of queries scaled by one of its columns, in registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from icl_eval.kernels.power.compiled import RUN_TIME_SIZES
from icl_eval.kernels.power.tiles import as_accumulator, gate_between, power


@triton.jit
def query_state(
    q,
    q_ptr,
    q_stride,
    qt_ptr,
    qt_stride,
    state_ptr,
    t,
    inside,
    acc,
    D: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    DEGREE: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """acc [BM, V] + φ(q)·S for one state [rows, V]; ``q`` [BM, D] is the tile at tokens t, ``qt`` its transpose."""
    # The conditions are always true. Loads are pipelined while the products, out of the pipeliner's sight, are left in
    # one piece: it would split them in steps that wait for each other.
    v = tl.arange(0, V)
    if DEGREE == 1:
        state = tl.load(state_ptr + tl.arange(0, D)[:, None] * V + v[None, :])
        acc = tl.dot(q, state, acc, input_precision=PRECISION)
    elif SPLIT == D:
        j = tl.arange(0, D)
        q = as_accumulator(q, D, PRECISION)
        for i in tl.range(0, D, num_stages=STAGES):
            scale = tl.load(qt_ptr + i * qt_stride + t).to(q.dtype)
            state = tl.load(state_ptr + (i * D + j[:, None]) * V + v[None, :])
            if i < D:
                acc = tl.dot(q * scale[:, None], state, acc, input_precision=PRECISION)
    else:
        j = tl.arange(0, SPLIT)
        row = q_ptr + t[:, None].to(tl.int64) * q_stride + j[None, :]
        q_lower = as_accumulator(tl.load(row, mask=inside[:, None], other=0.0), SPLIT, PRECISION)
        q_upper = as_accumulator(tl.load(row + SPLIT, mask=inside[:, None], other=0.0), SPLIT, PRECISION)
        for i in tl.range(0, SPLIT, num_stages=STAGES):
            scale = tl.load(qt_ptr + i * qt_stride + t)
            state = state_ptr + (i * D + j[:, None]) * V + v[None, :]
            lower = tl.load(state)
            upper = tl.load(state + SPLIT * V)
            if i < SPLIT:
                acc = tl.dot(q_lower * scale.to(q.dtype)[:, None], lower, acc, input_precision=PRECISION)
                acc = tl.dot(q_upper * (2.0 * scale).to(q.dtype)[:, None], upper, acc, input_precision=PRECISION)
        for i in tl.range(SPLIT, D, 2, num_stages=STAGES):
            scale = tl.load(qt_ptr + i * qt_stride + t)
            next_scale = tl.load(qt_ptr + (i + 1) * qt_stride + t)
            state = state_ptr + ((D + i - SPLIT) * SPLIT + j[:, None]) * V + v[None, :]
            rows = tl.load(state)
            next_rows = tl.load(state + SPLIT * V)
            if i < D:
                acc = tl.dot(q_upper * scale.to(q.dtype)[:, None], rows, acc, input_precision=PRECISION)
                acc = tl.dot(q_upper * next_scale.to(q.dtype)[:, None], next_rows, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    qt_ptr,
    high_ptr,
    low_ptr,
    state_ptr,
    z_ptr,
    y_ptr,
    y_low_ptr,
    row_sum_ptr,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_vb,
    stride_vt,
    stride_vh,
    H,
    T,
    T_padded,
    chunk,
    n_chunks,
    output_scale,
    D: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    DEGREE: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    KEEP_LOW: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y [B, T, H, V] (contiguous) and the row sums [B·H, T_padded] of BM queries of one head.

    Sums are carried relative to the gates at the tile's first token, so that every factor is at most 1. Grid
    (tiles of BM, B·H).
    """
    start = tl.program_id(0) * BM
    head = tl.program_id(1).to(tl.int64)
    batch, h = head // H, head % H
    kv_head = head // GROUPS
    n = start // chunk
    chunk_start = n * chunk
    t = start + tl.arange(0, BM)
    inside = t < T
    d = tl.arange(0, D)
    v_index = tl.arange(0, V)
    q_base = q_ptr + batch * stride_qb + h * stride_qh
    k_base = k_ptr + batch * stride_kb + h // GROUPS * stride_kh
    v_base = v_ptr + batch * stride_vb + h // GROUPS * stride_vh
    high_base = high_ptr + kv_head * T_padded
    low_base = low_ptr + kv_head * T_padded
    q = tl.load(q_base + t[:, None].to(tl.int64) * stride_qt + d[None, :], mask=inside[:, None], other=0.0)
    acc = tl.zeros((BM, V), tl.float32)
    row_sum = tl.zeros((BM,), tl.float32)

    first_high, first_low = 0.0, 0.0
    if GATED:
        if start > chunk_start:
            first_high = tl.load(high_base + start - 1)
            first_low = tl.load(low_base + start - 1)
        row_high = tl.load(high_base + t)
        row_low = tl.load(low_base + t)

    if n > 0 or HAS_INITIAL:
        slot = kv_head * (n_chunks + 1) + n
        acc = query_state(
            q, q_base, stride_qt, qt_ptr + head * D * T_padded, T_padded, state_ptr + slot * ROWS * V, t, inside, acc,
            D, V, SPLIT, DEGREE, PRECISION, STAGES,
        )  # fmt: skip
        if NORMALIZED:
            z = tl.load(z_ptr + slot * D * D + d[:, None] * D + d[None, :]).to(q.dtype)
            row_sum = tl.sum(tl.dot(q, z, input_precision=PRECISION) * q, 1)
        if GATED:
            acc *= tl.exp2(first_high)
            row_sum *= tl.exp2(first_high)

    for first in tl.range(chunk_start, start, BN, num_stages=STAGES):
        j = first + tl.arange(0, BN)
        j64 = j.to(tl.int64)
        k = tl.load(k_base + d[:, None] + j64[None, :] * stride_kt)
        weights = power(tl.dot(q, k, input_precision=PRECISION), DEGREE)
        if GATED:
            gate = gate_between(first_high, first_low, tl.load(high_base + j), tl.load(low_base + j))
            weights = weights * gate[None, :]
        if NORMALIZED:
            row_sum += tl.sum(weights, 1)
        v = tl.load(v_base + j64[:, None] * stride_vt + v_index[None, :])
        if first < start:  # always true: see query_state
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    if GATED:
        since_first = gate_between(row_high, row_low, first_high, first_low)
        acc *= since_first[:, None]
        row_sum *= since_first

    for first in tl.range(start, min(start + BM, T), BN, num_stages=STAGES):
        j = first + tl.arange(0, BN)
        j64 = j.to(tl.int64)
        k = tl.load(k_base + d[:, None] + j64[None, :] * stride_kt, mask=j[None, :] < T, other=0.0)
        weights = power(tl.dot(q, k, input_precision=PRECISION), DEGREE)
        if GATED:
            j_high = tl.load(high_base + j)
            j_low = tl.load(low_base + j)
            weights = weights * gate_between(row_high[:, None], row_low[:, None], j_high[None, :], j_low[None, :])
        weights = tl.where(t[:, None] >= j[None, :], weights, 0.0)
        if NORMALIZED:
            row_sum += tl.sum(weights, 1)
        v = tl.load(v_base + j64[:, None] * stride_vt + v_index[None, :], mask=j[:, None] < T, other=0.0)
        if first < T:  # always true
            acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)

    if NORMALIZED:
        acc = acc * tl.where(row_sum == 0.0, 0.0, 1.0 / tl.where(row_sum == 0.0, 1.0, row_sum))[:, None]
        tl.store(row_sum_ptr + head * T_padded + t, row_sum)
    else:
        acc *= output_scale
    out = (batch * T * H + h) * V + t[:, None].to(tl.int64) * (H * V) + v_index[None, :]
    y = acc.to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + out, y, inside[:, None])
    if KEEP_LOW:
        tl.store(y_low_ptr + out, (acc - y.to(tl.float32)).to(y.dtype), inside[:, None])
