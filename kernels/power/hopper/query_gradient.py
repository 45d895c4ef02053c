"""Gradient of the queries."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    async_copy,
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from icl_eval.kernels.power.compiled import RUN_TIME_SIZES
from icl_eval.kernels.power.hopper.tiles import (
    arrived_key_value,
    as_columns,
    copy_key_value,
    copy_mirrored_rows,
    copy_tile,
    gates_before,
    gates_between,
    load_tile,
    multiply,
    times_normalizer,
)


@gluon.jit(do_not_specialize=RUN_TIME_SIZES)
def query_gradient_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, dn_ptr, high_ptr, low_ptr, state_ptr, z_ptr, dq_ptr, share_ptr, stride_qb, stride_qt,
    stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, H, T, T_padded, chunk, n_chunks,
    D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr, ROWS: gl.constexpr, GROUPS: gl.constexpr,
    GATED: gl.constexpr, NORMALIZED: gl.constexpr, HAS_INITIAL: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    COUNT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """As :func:`icl_eval.kernels.power.backward.query_gradient_kernel`."""
    result: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    scored: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, result, 2)
    by_row: gl.constexpr = gl.SliceLayout(1, result)
    by_score: gl.constexpr = gl.SliceLayout(1, scored)
    q_tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BM, D], gl.bfloat16)
    slot_rows: gl.constexpr = D if D > BN else BN
    tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([slot_rows, V], gl.bfloat16)

    start = gl.program_id(0) * BM
    head = gl.program_id(1).to(gl.int64)
    batch, h = head // H, head % H
    kv_head = head // GROUPS
    n = start // chunk
    chunk_start = n * chunk
    q_base = q_ptr + batch * stride_qb + h * stride_qh
    do_base = do_ptr + (batch * T * H + h) * V
    k_base = k_ptr + batch * stride_kb + h // GROUPS * stride_kh
    v_base = v_ptr + batch * stride_vb + h // GROUPS * stride_vh
    high_base = high_ptr + kv_head * T_padded
    low_base = low_ptr + kv_head * T_padded
    t = start + gl.arange(0, BM, layout=by_row)

    ring = gl.allocate_shared_memory(gl.bfloat16, [COUNT * STAGES, slot_rows, V], tile)
    q_smem = gl.allocate_shared_memory(gl.bfloat16, [BM, D], q_tile)
    do_smem = gl.allocate_shared_memory(gl.bfloat16, [BM, V], q_tile)
    q = load_tile(q_smem, q_base, start, stride_qt, T, BM, D)
    copy_tile(do_smem, do_base, start, H * V, T, BM, V)
    async_copy.commit_group()

    acc = gl.zeros([BM, D], gl.float32, result)
    share = gl.zeros([BM], gl.float32, by_row)
    first_high, first_low = 0.0, 0.0
    dn = gl.load(dn_ptr + head * T_padded + t) if NORMALIZED else share
    if GATED:
        first_high, first_low = gates_before(high_base, low_base, start, chunk_start)
        row_high = gl.load(high_base + t)
        row_low = gl.load(low_base + t)

    if n > 0 or HAS_INITIAL:
        place = kv_head * (n_chunks + 1) + n
        state_base = state_ptr + place * ROWS * V
        columns = as_columns(q, BM, D)
        for step in gl.static_range(STAGES - 1):
            copy_mirrored_rows(step, ring, state_base, D, V, SPLIT, COUNT, STAGES)
        async_copy.wait_group(STAGES - 1)
        do = do_smem.load(left)
        for step in range(D // COUNT):
            slot = step % STAGES
            async_copy.wait_group(STAGES - 2)
            fence_async_shared()
            for m in gl.static_range(COUNT):
                scale = columns.index(COUNT * step + m).load(gl.SliceLayout(1, left))
                rows = ring.index(COUNT * slot + m).slice(0, D, 0)
                acc = warpgroup_mma(multiply(do, scale[:, None]), rows.permute((1, 0)), acc, is_async=True)
                if m == 0:
                    copy_mirrored_rows(step + STAGES - 1, ring, state_base, D, V, SPLIT, COUNT, STAGES)
            acc = warpgroup_mma_wait(0, deps=(acc,))
        async_copy.wait_group(0)
        if NORMALIZED:
            qz = times_normalizer(q_smem, ring, z_ptr, place, BM, D, result)
            acc += qz * dn[:, None]
        acc *= 2.0
        if GATED:
            acc *= gl.exp2(first_high)
            share = gl.sum(acc * q_smem.load(result).to(gl.float32), 1)

    for step in gl.static_range(STAGES - 1):
        copy_key_value(step, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
    before = (start - chunk_start) // BN
    score_dn = gl.convert_layout(dn, by_score)
    for step in range(before):
        j = chunk_start + step * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, scored))
        if GATED:
            since = (first_high - gl.load(high_base + j)) + (first_low - gl.load(low_base + j))
        k, v = arrived_key_value(step, ring, BN, STAGES)
        zero = gl.zeros([BM, BN], gl.float32, scored)
        scores = warpgroup_mma(q_smem, k.permute((1, 0)), zero, use_acc=False, is_async=True)
        dscores = warpgroup_mma(do_smem, v.permute((1, 0)), zero, use_acc=False, is_async=True)
        copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
        scores, dscores = warpgroup_mma_wait(0, deps=(scores, dscores))
        if NORMALIZED:
            dscores += score_dn[:, None]
        dscores *= 2.0 * scores
        if GATED:
            dscores *= gl.exp2(gl.minimum(since, 0.0))[None, :]
            share += gl.convert_layout(gl.sum(dscores * scores, 1), by_row)
        acc = warpgroup_mma(gl.convert_layout(dscores.to(gl.bfloat16), left), k, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
    if GATED:
        since_first = gl.exp2(gl.minimum((row_high - first_high) + (row_low - first_low), 0.0))
        acc *= since_first[:, None]
        share *= since_first

    scored_t = gl.convert_layout(t, by_score)
    for step in range(before, before + BM // BN):
        j = chunk_start + step * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, scored))
        k, v = arrived_key_value(step, ring, BN, STAGES)
        zero = gl.zeros([BM, BN], gl.float32, scored)
        scores = warpgroup_mma(q_smem, k.permute((1, 0)), zero, use_acc=False)
        dscores = warpgroup_mma(do_smem, v.permute((1, 0)), zero, use_acc=False)
        copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
        if NORMALIZED:
            dscores += score_dn[:, None]
        dscores *= 2.0 * scores
        if GATED:
            dscores *= gates_between(row_high, row_low, high_base, low_base, j, by_score)
        dscores = gl.where(scored_t[:, None] >= j[None, :], dscores, 0.0)
        if GATED:
            share += gl.convert_layout(gl.sum(dscores * scores, 1), by_row)
        acc = warpgroup_mma(gl.convert_layout(dscores.to(gl.bfloat16), left), k, acc)
    async_copy.wait_group(0)

    if GATED:
        gl.store(share_ptr + head * T_padded + t, share * 0.5)
    column = gl.arange(0, D, layout=gl.SliceLayout(0, result))
    out = (batch * T * H + h) * D + t[:, None].to(gl.int64) * (H * D) + column[None, :]
    gl.store(dq_ptr + out, acc.to(gl.bfloat16), mask=t[:, None] < T)
