"""The output: attention inside a chunk, and the state before it."""

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
    add_scaled_tiles,
    arrived_key_value,
    as_columns,
    async_load,
    copy_key_value,
    gates_before,
    gates_between,
    load_tile,
    times_normalizer,
)


@gluon.jit
def _copy_state_rows(slot, state_ptr, i, D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr):
    """Asks for the state rows (i, j) of all j from the start of i's tile of 16 on; the rest of the slot is zero."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // V, V // 8], [4, 1], [1, 0])
    j = gl.arange(0, D, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, V, layout=gl.SliceLayout(0, layout))
    row = j + gl.where(i < SPLIT, i * D, SPLIT * D + (i - SPLIT) * (D - SPLIT) - SPLIT)
    source = state_ptr + row[:, None] * V + column[None, :]
    async_load(slot, source, mask=(j >= i // 16 * 16)[:, None])


@gluon.jit
def _copy_state_tiles(
    step, ring, state_ptr, D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr, COUNT: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for the state rows of COUNT values of i, the first of them COUNT step; past the last, for nothing."""
    slot = step % STAGES
    for n in gl.static_range(COUNT):
        _copy_state_rows(ring.index(COUNT * slot + n).slice(0, D, 0), state_ptr, COUNT * step + n, D, V, SPLIT)
    async_copy.commit_group()


@gluon.jit
def _query_state(
    acc, q_base, stride_qt, t, T, ring, transposed, state_ptr, D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr,
    COUNT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """acc [BM, V] + φ(q)·S, the rows of q by tiles of 16: an (i, j) off the diagonal of tiles stands for (j, i) too."""
    left: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    rows: gl.constexpr = gl.SliceLayout(1, left)
    d = gl.arange(0, 16, layout=gl.SliceLayout(0, left))
    row = gl.convert_layout(t, rows)
    tiles = ()
    for b in gl.static_range(D // 16):
        tiles = tiles + (
            gl.load(
                q_base + row[:, None].to(gl.int64) * stride_qt + (16 * b + d)[None, :], mask=row[:, None] < T, other=0.0
            ),
        )
    for step in gl.static_range(STAGES - 1):
        _copy_state_tiles(step, ring, state_ptr, D, V, SPLIT, COUNT, STAGES)
    for a in gl.static_range(D // 16):
        for step in range(16 // COUNT * a, 16 // COUNT * (a + 1)):
            slot = step % STAGES
            async_copy.wait_group(STAGES - 2)
            fence_async_shared()
            for n in gl.static_range(COUNT):
                scale = transposed.index(COUNT * step + n).load(rows)
                acc = add_scaled_tiles(acc, tiles, scale, ring.index(COUNT * slot + n), a, D)
                if n == 0:
                    _copy_state_tiles(step + STAGES - 1, ring, state_ptr, D, V, SPLIT, COUNT, STAGES)
            acc = warpgroup_mma_wait(0, deps=(acc,))
    async_copy.wait_group(0)
    return acc


@gluon.jit(do_not_specialize=RUN_TIME_SIZES)
def forward_kernel(
    q_ptr, k_ptr, v_ptr, high_ptr, low_ptr, state_ptr, z_ptr, y_ptr, y_low_ptr, row_sum_ptr, stride_qb, stride_qt,
    stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh, H, T, T_padded, chunk, n_chunks,
    output_scale, D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr, ROWS: gl.constexpr, GROUPS: gl.constexpr,
    GATED: gl.constexpr, NORMALIZED: gl.constexpr, HAS_INITIAL: gl.constexpr, KEEP_LOW: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, COUNT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """As :func:`icl_eval.kernels.power.forward.forward_kernel`."""
    result: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, V, 16])
    scored: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    weighing: gl.constexpr = gl.DotOperandLayout(0, result, 2)
    by_row: gl.constexpr = gl.SliceLayout(1, result)
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
    k_base = k_ptr + batch * stride_kb + h // GROUPS * stride_kh
    v_base = v_ptr + batch * stride_vb + h // GROUPS * stride_vh
    high_base = high_ptr + kv_head * T_padded
    low_base = low_ptr + kv_head * T_padded
    t = start + gl.arange(0, BM, layout=by_row)

    ring = gl.allocate_shared_memory(gl.bfloat16, [COUNT * STAGES, slot_rows, V], tile)
    q_smem = gl.allocate_shared_memory(gl.bfloat16, [BM, D], q_tile)
    q = load_tile(q_smem, q_base, start, stride_qt, T, BM, D)

    acc = gl.zeros([BM, V], gl.float32, result)
    row_sum = gl.zeros([BM], gl.float32, by_row)
    first_high, first_low = 0.0, 0.0
    if GATED:
        first_high, first_low = gates_before(high_base, low_base, start, chunk_start)
        row_high = gl.load(high_base + t)
        row_low = gl.load(low_base + t)

    if n > 0 or HAS_INITIAL:
        place = kv_head * (n_chunks + 1) + n
        columns = as_columns(q, BM, D)
        acc = _query_state(
            acc, q_base, stride_qt, t, T, ring, columns, state_ptr + place * ROWS * V, D, V, SPLIT, COUNT, STAGES
        )
        if NORMALIZED:
            qz = times_normalizer(q_smem, ring, z_ptr, place, BM, D, result)
            row_sum = gl.sum(qz * q_smem.load(result).to(gl.float32), 1)
        if GATED:
            acc *= gl.exp2(first_high)
            row_sum *= gl.exp2(first_high)

    for step in gl.static_range(STAGES - 1):
        copy_key_value(step, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
    before = (start - chunk_start) // BN
    for step in range(before):
        j = chunk_start + step * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, scored))
        if GATED:
            since = (first_high - gl.load(high_base + j)) + (first_low - gl.load(low_base + j))
        k, v = arrived_key_value(step, ring, BN, STAGES)
        zero = gl.zeros([BM, BN], gl.float32, scored)
        scores = warpgroup_mma(q_smem, k.permute((1, 0)), zero, use_acc=False, is_async=True)
        copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
        scores = warpgroup_mma_wait(0, deps=(scores,))
        weights = scores * scores
        if GATED:
            weights *= gl.exp2(gl.minimum(since, 0.0))[None, :]
        if NORMALIZED:
            row_sum += gl.convert_layout(gl.sum(weights, 1), by_row)
        acc = warpgroup_mma(gl.convert_layout(weights.to(gl.bfloat16), weighing), v, acc, is_async=True)
        acc = warpgroup_mma_wait(0, deps=(acc,))
    if GATED:
        since_first = gl.exp2(gl.minimum((row_high - first_high) + (row_low - first_low), 0.0))
        acc *= since_first[:, None]
        row_sum *= since_first

    scored_t = gl.convert_layout(t, gl.SliceLayout(1, scored))
    for step in range(before, before + BM // BN):
        j = chunk_start + step * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, scored))
        k, v = arrived_key_value(step, ring, BN, STAGES)
        scores = warpgroup_mma(q_smem, k.permute((1, 0)), gl.zeros([BM, BN], gl.float32, scored), use_acc=False)
        copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
        weights = scores * scores
        if GATED:
            weights *= gates_between(row_high, row_low, high_base, low_base, j, gl.SliceLayout(1, scored))
        weights = gl.where(scored_t[:, None] >= j[None, :], weights, 0.0)
        if NORMALIZED:
            row_sum += gl.convert_layout(gl.sum(weights, 1), by_row)
        acc = warpgroup_mma(gl.convert_layout(weights.to(gl.bfloat16), weighing), v, acc)
    async_copy.wait_group(0)

    if NORMALIZED:
        acc *= gl.where(row_sum == 0.0, 0.0, 1.0 / gl.where(row_sum == 0.0, 1.0, row_sum))[:, None]
        gl.store(row_sum_ptr + head * T_padded + t, row_sum)
    else:
        acc *= output_scale
    column = gl.arange(0, V, layout=gl.SliceLayout(0, result))
    out = (batch * T * H + h) * V + t[:, None].to(gl.int64) * (H * V) + column[None, :]
    y = acc.to(gl.bfloat16)
    gl.store(y_ptr + out, y, mask=t[:, None] < T)
    if KEEP_LOW:
        gl.store(y_low_ptr + out, (acc - y.to(gl.float32)).to(gl.bfloat16), mask=t[:, None] < T)
