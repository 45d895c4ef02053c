"""Triton kernels of the backward pass.

With un-normalised outputs o and row sums n, dO = dy / n and dn = -dO·y, so that the gradient of a weight is dO·v + dn.
Weights are recomputed, and the share of earlier chunks comes from the states S, that of later chunks from their
gradients dS. Both are symmetric in (i, j): dq_a = 2 Σ_i q_i S[i, a]·dO, a scaled operand in registers again.

A gate's gradient is a sum of weights times their gradients over the pairs that it parts. Inside a chunk it is the
queries' share after the gate, q·dq / p, less the keys' share after it, k·dk / p, both summed in float32 from the same
float32 weights: pairs that the gate does not part cancel exactly. What the chunk's keys before the gate give to later
chunks is summed as such, since a difference of half-precision states would leave the noise of their rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from icl_eval.kernels.power.compiled import RUN_TIME_SIZES
from icl_eval.kernels.power.tiles import as_accumulator, gate_between, mirrored_rows, power, times_slope


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def output_gradient_kernel(
    dy_ptr,
    y_ptr,
    y_low_ptr,
    row_sum_ptr,
    do_ptr,
    dn_ptr,
    stride_b,
    stride_t,
    stride_h,
    H,
    T,
    T_padded,
    output_scale,
    V: tl.constexpr,
    NORMALIZED: tl.constexpr,
    HAS_LOW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Gradients dO of the un-normalised outputs, [B, T, H, V] contiguous, and dn of the row sums, [B·H, T_padded]. Both
    are zero where the row sum is. dn is that of dO as stored, and of the output with what rounding cut off it, so that
    a row's gradients of weights, times the weights, add up to nothing. Grid (T_padded / BLOCK, B·H).
    """
    head = tl.program_id(1).to(tl.int64)
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (t < T)[:, None]
    t64 = t[:, None].to(tl.int64)
    v = tl.arange(0, V)[None, :]
    source = dy_ptr + head // H * stride_b + head % H * stride_h
    own = (head // H * T * H + head % H) * V + t64 * (H * V) + v
    dy = tl.load(source + t64 * stride_t + v, inside, 0.0).to(tl.float32)
    if NORMALIZED:
        y = tl.load(y_ptr + own, inside, 0.0).to(tl.float32)
        if HAS_LOW:
            y += tl.load(y_low_ptr + own, inside, 0.0).to(tl.float32)
        row_sum = tl.load(row_sum_ptr + head * T_padded + t, t < T, 0.0)
        inverse = tl.where(row_sum == 0.0, 0.0, 1.0 / tl.where(row_sum == 0.0, 1.0, row_sum))
        do = (dy * inverse[:, None]).to(do_ptr.dtype.element_ty)
        tl.store(dn_ptr + head * T_padded + t, -tl.sum(do.to(tl.float32) * y, 1))
    else:
        do = (dy * output_scale).to(do_ptr.dtype.element_ty)
    tl.store(do_ptr + own, do, inside)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def query_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    qt_ptr,
    do_ptr,
    dn_ptr,
    high_ptr,
    low_ptr,
    state_ptr,
    z_ptr,
    dq_ptr,
    share_ptr,
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
    D: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    DEGREE: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dq [B, T, H, D] (contiguous) of BM queries, and q·dq / degree, the queries' share of the gates' gradient,
    [B·H, T_padded]. Grid (tiles of BM, B·H).
    """
    start = tl.program_id(0) * BM
    head = tl.program_id(1).to(tl.int64)
    batch, h = head // H, head % H
    kv_head = head // GROUPS
    n = start // chunk
    chunk_start = n * chunk
    t = start + tl.arange(0, BM)
    inside = (t < T)[:, None]
    t64 = t[:, None].to(tl.int64)
    d = tl.arange(0, D)
    v_index = tl.arange(0, V)
    k_base = k_ptr + batch * stride_kb + h // GROUPS * stride_kh
    v_base = v_ptr + batch * stride_vb + h // GROUPS * stride_vh
    high_base = high_ptr + kv_head * T_padded
    low_base = low_ptr + kv_head * T_padded
    q = tl.load(q_ptr + batch * stride_qb + h * stride_qh + t64 * stride_qt + d[None, :], inside, 0.0)
    do = tl.load(do_ptr + (batch * T * H + h) * V + t64 * (H * V) + v_index[None, :], inside, 0.0)
    acc = tl.zeros((BM, D), tl.float32)
    share = tl.zeros((BM,), tl.float32)
    first_high, first_low = 0.0, 0.0
    if NORMALIZED:
        dn = tl.load(dn_ptr + head * T_padded + t)
    if GATED:
        if start > chunk_start:
            first_high = tl.load(high_base + start - 1)
            first_low = tl.load(low_base + start - 1)
        row_high = tl.load(high_base + t)
        row_low = tl.load(low_base + t)

    if n > 0 or HAS_INITIAL:
        slot = kv_head * (n_chunks + 1) + n
        state_base = state_ptr + slot * ROWS * V
        if DEGREE == 1:
            state = tl.load(state_base + d[None, :] * V + v_index[:, None])
            acc = tl.dot(do, state, acc, input_precision=PRECISION)
        else:
            qt_base = qt_ptr + head * D * T_padded
            left = as_accumulator(do, V, PRECISION)
            for i in tl.range(0, D, num_stages=STAGES):
                scale = tl.load(qt_base + i * T_padded + t).to(do.dtype)
                state = tl.load(state_base + mirrored_rows(i, D, SPLIT)[:, None] * V + v_index[None, :])
                if i < D:  # always true: see query_state in forward.py
                    acc = tl.dot(left * scale[:, None], tl.trans(state), acc, input_precision=PRECISION)
            if NORMALIZED:
                z = tl.load(z_ptr + slot * D * D + d[:, None] * D + d[None, :]).to(q.dtype)
                acc += tl.dot(q, z, input_precision=PRECISION) * dn[:, None]
            acc *= 2.0
        if GATED:
            acc *= tl.exp2(first_high)
            share = tl.sum(acc * q, 1)

    for first in tl.range(chunk_start, start, BN):
        j = first + tl.arange(0, BN)
        j64 = j[:, None].to(tl.int64)
        k = tl.load(k_base + j64 * stride_kt + d[None, :])
        v = tl.load(v_base + j64 * stride_vt + v_index[None, :])
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if NORMALIZED:
            dweights += dn[:, None]
        dscores = times_slope(dweights, scores, DEGREE)
        if GATED:
            gate = gate_between(first_high, first_low, tl.load(high_base + j), tl.load(low_base + j))
            dscores = dscores * gate[None, :]
            share += tl.sum(dscores * scores, 1)
        acc = tl.dot(dscores.to(k.dtype), k, acc, input_precision=PRECISION)
    if GATED:
        since_first = gate_between(row_high, row_low, first_high, first_low)
        acc *= since_first[:, None]
        share *= since_first

    for first in tl.range(start, min(start + BM, T), BN):
        j = first + tl.arange(0, BN)
        j64 = j[:, None].to(tl.int64)
        k = tl.load(k_base + j64 * stride_kt + d[None, :], mask=j[:, None] < T, other=0.0)
        v = tl.load(v_base + j64 * stride_vt + v_index[None, :], mask=j[:, None] < T, other=0.0)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        if NORMALIZED:
            dweights += dn[:, None]
        dscores = times_slope(dweights, scores, DEGREE)
        if GATED:
            j_high = tl.load(high_base + j)
            j_low = tl.load(low_base + j)
            dscores = dscores * gate_between(row_high[:, None], row_low[:, None], j_high[None, :], j_low[None, :])
        dscores = tl.where(t[:, None] >= j[None, :], dscores, 0.0)
        if GATED:
            share += tl.sum(dscores * scores, 1)
        acc = tl.dot(dscores.to(k.dtype), k, acc, input_precision=PRECISION)

    if GATED:
        tl.store(share_ptr + head * T_padded + t, share / DEGREE)
    tl.store(dq_ptr + (batch * T * H + h) * D + t64 * (H * D) + d[None, :], acc.to(dq_ptr.dtype.element_ty), inside)


@triton.jit
def _key_value_tile(
    dk,
    dv,
    share,
    k,
    v,
    q_base,
    do_base,
    dn_base,
    gate,
    visible,
    t,
    T,
    stride_qt,
    stride_dot,
    D: tl.constexpr,
    V: tl.constexpr,
    DEGREE: tl.constexpr,
    NORMALIZED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds what the queries at tokens t give to the gradients of a tile of keys and values.

    ``gate`` multiplies weights and ``visible`` masks them: [BK or 1, BQ]. ``share`` gathers
    k·dk.
    """
    t64 = t[:, None].to(tl.int64)
    q = tl.load(q_base + t64 * stride_qt + tl.arange(0, D)[None, :], t[:, None] < T, 0.0)
    do = tl.load(do_base + t64 * stride_dot + tl.arange(0, V)[None, :], t[:, None] < T, 0.0)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
    weights = tl.where(visible, power(scores, DEGREE) * gate, 0.0)
    dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
    dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    if NORMALIZED:
        dn = tl.load(dn_base + t)
        dweights += dn[None, :]
    dscores = tl.where(visible, times_slope(dweights, scores, DEGREE) * gate, 0.0)
    share += tl.sum(dscores * scores, 1)
    dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv, share


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def key_value_gradient_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    kt_ptr,
    do_ptr,
    dn_ptr,
    high_ptr,
    low_ptr,
    dstate_ptr,
    dz_ptr,
    dk_ptr,
    dv_ptr,
    share_ptr,
    later_share_ptr,
    stride_qb,
    stride_qt,
    stride_qh,
    stride_kb,
    stride_kt,
    stride_kh,
    stride_vb,
    stride_vt,
    stride_vh,
    Hk,
    T,
    T_padded,
    chunk,
    n_chunks,
    D: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    DEGREE: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    PRECISION: tl.constexpr,
    BK: tl.constexpr,
    BQ: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dk [B, T, Hk, D] and dv [B, T, Hk, V] (contiguous) of BK tokens, and k·dk / degree, the keys' share of the
    gates' gradient, [B·Hk, T_padded], of all queries and of those in later chunks. Queries of a group are summed. Grid
    (tiles of BK, B·Hk).
    """
    start = tl.program_id(0) * BK
    head = tl.program_id(1).to(tl.int64)
    batch, h = head // Hk, head % Hk
    n = start // chunk
    chunk_end = (n + 1) * chunk
    end = start + BK
    j = start + tl.arange(0, BK)
    inside = (j < T)[:, None]
    j64 = j[:, None].to(tl.int64)
    d = tl.arange(0, D)
    v_index = tl.arange(0, V)
    high_base = high_ptr + head * T_padded
    low_base = low_ptr + head * T_padded
    k = tl.load(k_ptr + batch * stride_kb + h * stride_kh + j64 * stride_kt + d[None, :], inside, 0.0)
    v = tl.load(v_ptr + batch * stride_vb + h * stride_vh + j64 * stride_vt + v_index[None, :], inside, 0.0)
    dk = tl.zeros((BK, D), tl.float32)
    dv = tl.zeros((BK, V), tl.float32)
    share = tl.zeros((BK,), tl.float32)
    later_share = tl.zeros((BK,), tl.float32)
    if GATED:
        end_high = tl.load(high_base + end - 1)
        end_low = tl.load(low_base + end - 1)
        row_high = tl.load(high_base + j)
        row_low = tl.load(low_base + j)

    if n < n_chunks - 1 or HAS_FINAL:
        slot = head * n_chunks + n
        dstate_base = dstate_ptr + slot * ROWS * V
        if DEGREE == 1:
            dstate = tl.load(dstate_base + d[:, None] * V + v_index[None, :])
            dv = tl.dot(k, dstate, dv, input_precision=PRECISION)
            dk = tl.dot(v, tl.trans(dstate), dk, input_precision=PRECISION)
        else:
            kt_base = kt_ptr + head * D * T_padded
            k_left = as_accumulator(k, D, PRECISION)
            v_left = as_accumulator(v, V, PRECISION)
            for i in tl.range(0, D, num_stages=STAGES):
                scale = tl.load(kt_base + i * T_padded + j).to(k.dtype)
                dstate = tl.load(dstate_base + mirrored_rows(i, D, SPLIT)[:, None] * V + v_index[None, :])
                if i < D:  # always true: see query_state in forward.py
                    dv = tl.dot(k_left * scale[:, None], dstate, dv, input_precision=PRECISION)
                    dk = tl.dot(v_left * scale[:, None], tl.trans(dstate), dk, input_precision=PRECISION)
            if NORMALIZED:
                dz = tl.load(dz_ptr + slot * D * D + d[:, None] * D + d[None, :]).to(k.dtype)
                dk = tl.dot(k, dz, dk, input_precision=PRECISION)
            dk *= 2.0
        if GATED:
            chunk_high = tl.load(high_base + chunk_end - 1)
            chunk_low = tl.load(low_base + chunk_end - 1)
            rest = gate_between(chunk_high, chunk_low, end_high, end_low)
            dk *= rest
            dv *= rest
            later_share = tl.sum(dk * k, 1)

    for g in range(GROUPS):
        query_head = head * GROUPS + g
        q_base = q_ptr + batch * stride_qb + (h * GROUPS + g) * stride_qh
        do_base = do_ptr + (batch * T * Hk * GROUPS + h * GROUPS + g) * V
        dn_base = dn_ptr + query_head * T_padded
        for first in tl.range(end, min(chunk_end, T), BQ):
            t = first + tl.arange(0, BQ)
            gate = tl.full((1, BQ), 1.0, tl.float32)
            if GATED:
                gate = gate_between(tl.load(high_base + t), tl.load(low_base + t), end_high, end_low)[None, :]
            dk, dv, share = _key_value_tile(
                dk, dv, share, k, v, q_base, do_base, dn_base, gate, tl.full((1, BQ), 1, tl.int1), t, T, stride_qt,
                Hk * GROUPS * V, D, V, DEGREE, NORMALIZED, PRECISION,
            )  # fmt: skip
    if GATED:
        until_end = gate_between(end_high, end_low, row_high, row_low)
        dk *= until_end[:, None]
        dv *= until_end[:, None]
        share *= until_end
        later_share *= until_end / DEGREE

    for g in range(GROUPS):
        query_head = head * GROUPS + g
        q_base = q_ptr + batch * stride_qb + (h * GROUPS + g) * stride_qh
        do_base = do_ptr + (batch * T * Hk * GROUPS + h * GROUPS + g) * V
        dn_base = dn_ptr + query_head * T_padded
        for first in tl.range(start, min(end, T), BQ):
            t = first + tl.arange(0, BQ)
            gate = tl.full((1, BQ), 1.0, tl.float32)
            if GATED:
                t_high = tl.load(high_base + t)
                t_low = tl.load(low_base + t)
                gate = gate_between(t_high[None, :], t_low[None, :], row_high[:, None], row_low[:, None])
            dk, dv, share = _key_value_tile(
                dk, dv, share, k, v, q_base, do_base, dn_base, gate, t[None, :] >= j[:, None], t, T, stride_qt,
                Hk * GROUPS * V, D, V, DEGREE, NORMALIZED, PRECISION,
            )  # fmt: skip

    out = (batch * T * Hk + h).to(tl.int64)
    tl.store(dk_ptr + out * D + j64 * (Hk * D) + d[None, :], dk.to(dk_ptr.dtype.element_ty), inside)
    tl.store(dv_ptr + out * V + j64 * (Hk * V) + v_index[None, :], dv.to(dv_ptr.dtype.element_ty), inside)
    if GATED:
        tl.store(share_ptr + head * T_padded + j, share / DEGREE + later_share)
        tl.store(later_share_ptr + head * T_padded + j, later_share)
