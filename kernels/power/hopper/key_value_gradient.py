"""Gradients of keys and values."""

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
    as_columns,
    copy_mirrored_rows,
    copy_tile,
    load_normalizer,
    multiply,
)


@gluon.jit
def _copy_queries(
    step, ring, q_ptr, do_ptr, start, tiles, stride_qt, stride_qh, stride_dot, T, D: gl.constexpr, V: gl.constexpr,
    BQ: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr,
):  # fmt: skip
    """Asks for what step ``step`` of :func:`_key_value_tile` reads; past the last, for nothing."""
    slot = step % STAGES
    g = step % GROUPS
    first = start + (tiles - 1 - step // GROUPS) * BQ
    T = gl.where(first < start, first, T)  # tokens from T on are not read
    copy_tile(ring.index(2 * slot), q_ptr + g * stride_qh, first, stride_qt, T, BQ, D)
    copy_tile(ring.index(2 * slot + 1), do_ptr + g * V, first, stride_dot, T, BQ, V)
    async_copy.commit_group()


@gluon.jit
def _key_value_tile(
    dk, dv, share, k_smem, v_smem, step, ring, q_ptr, do_ptr, dn_ptr, high_ptr, low_ptr, high, low, start, tiles,
    stride_qt, stride_qh, stride_dot, T, T_padded, D: gl.constexpr, V: gl.constexpr, BK: gl.constexpr,
    BQ: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr, GATED: gl.constexpr, NORMALIZED: gl.constexpr,
    MASKED: gl.constexpr,
):  # fmt: skip
    """Adds what the queries of one step give to dk / 2, dv and the keys' share. Steps go through the tiles of BQ tokens
    from the chunk's last back to the first that has the keys, each for all heads of the group.

    ``high`` and ``low`` are the running gates that weights count from: the keys' own, or those of their tile's end.
    """
    warps: gl.constexpr = gl.num_warps()
    scored: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BQ, 16])
    weighing: gl.constexpr = gl.DotOperandLayout(0, dk.type.layout, 2)
    t = start + (tiles - 1 - step // GROUPS) * BQ + gl.arange(0, BQ, layout=gl.SliceLayout(0, scored))
    if NORMALIZED:
        dn = gl.load(dn_ptr + step % GROUPS * T_padded + t)
    if GATED:
        t_high = gl.load(high_ptr + t)
        t_low = gl.load(low_ptr + t)
    slot = step % STAGES
    async_copy.wait_group(STAGES - 2)
    fence_async_shared()
    q = ring.index(2 * slot)
    do = ring.index(2 * slot + 1)
    zero = gl.zeros([BK, BQ], gl.float32, scored)
    scores = warpgroup_mma(k_smem, q.permute((1, 0)), zero, use_acc=False, is_async=True)
    dweights = warpgroup_mma(v_smem, do.permute((1, 0)), zero, use_acc=False, is_async=True)
    _copy_queries(
        step + STAGES - 1, ring, q_ptr, do_ptr, start, tiles, stride_qt, stride_qh, stride_dot, T, D, V, BQ, STAGES,
        GROUPS,
    )  # fmt: skip
    scores = warpgroup_mma_wait(1, deps=(scores,))
    half_slope = scores
    if GATED:
        half_slope *= gl.exp2(gl.minimum((t_high[None, :] - high) + (t_low[None, :] - low), 0.0))
    if MASKED:
        j = start + gl.arange(0, BK, layout=gl.SliceLayout(1, scored))
        half_slope = gl.where(t[None, :] >= j[:, None], half_slope, 0.0)
    weights = gl.convert_layout((half_slope * scores).to(gl.bfloat16), weighing)
    dv = warpgroup_mma(weights, do, dv, is_async=True)
    dweights = warpgroup_mma_wait(1, deps=(dweights,))
    if NORMALIZED:
        dweights += dn[None, :]
    dscores = dweights * half_slope
    if GATED:
        share += gl.sum(dscores * scores, 1)
    dk = warpgroup_mma(gl.convert_layout(dscores.to(gl.bfloat16), weighing), q, dk, is_async=True)
    dk, dv = warpgroup_mma_wait(0, deps=(dk, dv))
    return dk, dv, share


@gluon.jit(do_not_specialize=RUN_TIME_SIZES)
def key_value_gradient_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, dn_ptr, high_ptr, low_ptr, dstate_ptr, dz_ptr, dk_ptr, dv_ptr, share_ptr,
    later_share_ptr, stride_qb, stride_qt, stride_qh, stride_kb, stride_kt, stride_kh, stride_vb, stride_vt, stride_vh,
    Hk, T, T_padded, chunk, n_chunks, D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr, ROWS: gl.constexpr,
    GROUPS: gl.constexpr, GATED: gl.constexpr, NORMALIZED: gl.constexpr, HAS_FINAL: gl.constexpr, BK: gl.constexpr,
    BQ: gl.constexpr, COUNT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """As :func:`icl_eval.kernels.power.backward.key_value_gradient_kernel`, but for dk, which is half until the end."""
    warps: gl.constexpr = gl.num_warps()
    result: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, V, 16])
    scored: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [warps, 1], [16, BQ, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, result, 2)
    by_row: gl.constexpr = gl.SliceLayout(1, result)
    by_score: gl.constexpr = gl.SliceLayout(1, scored)
    tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BK, D], gl.bfloat16)

    start = gl.program_id(0) * BK
    head = gl.program_id(1).to(gl.int64)
    batch, h = head // Hk, head % Hk
    n = start // chunk
    end = start + BK
    chunk_end = (n + 1) * chunk
    q_base = q_ptr + batch * stride_qb + h * GROUPS * stride_qh
    do_base = do_ptr + (batch * T * Hk + h) * GROUPS * V
    dn_base = dn_ptr + head * GROUPS * T_padded
    high_base = high_ptr + head * T_padded
    low_base = low_ptr + head * T_padded
    stride_dot = Hk * GROUPS * V
    tiles = (chunk_end - start) // BQ
    after = (tiles - BK // BQ) * GROUPS

    k_smem = gl.allocate_shared_memory(gl.bfloat16, [BK, D], tile)
    v_smem = gl.allocate_shared_memory(gl.bfloat16, [BK, V], tile)
    queries = gl.allocate_shared_memory(gl.bfloat16, [2 * STAGES, BQ, V], tile)
    copy_tile(k_smem, k_ptr + batch * stride_kb + h * stride_kh, start, stride_kt, T, BK, D)
    copy_tile(v_smem, v_ptr + batch * stride_vb + h * stride_vh, start, stride_vt, T, BK, V)
    async_copy.commit_group()
    for ahead in gl.static_range(STAGES - 1):
        _copy_queries(
            ahead, queries, q_base, do_base, start, tiles, stride_qt, stride_qh, stride_dot, T, D, V, BQ, STAGES, GROUPS
        )  # fmt: skip

    dk = gl.zeros([BK, D], gl.float32, result)
    dv = gl.zeros([BK, V], gl.float32, result)
    share = gl.zeros([BK], gl.float32, by_score)
    later_share = gl.zeros([BK], gl.float32, by_row)
    j = start + gl.arange(0, BK, layout=by_row)
    end_high, end_low = 0.0, 0.0
    if GATED:
        end_high = gl.load(high_base + end - 1)
        end_low = gl.load(low_base + end - 1)
        row_high = gl.load(high_base + j)
        row_low = gl.load(low_base + j)

    if n < n_chunks - 1 or HAS_FINAL:
        place = head * n_chunks + n
        dstate_base = dstate_ptr + place * ROWS * V
        ring = gl.allocate_shared_memory(gl.bfloat16, [COUNT * STAGES, D, V], tile)
        for step in gl.static_range(STAGES - 1):
            copy_mirrored_rows(step, ring, dstate_base, D, V, SPLIT, COUNT, STAGES)
        if NORMALIZED:
            z = load_normalizer(dz_ptr, place, D)
        if GATED:
            chunk_high = gl.load(high_base + chunk_end - 1)
            chunk_low = gl.load(low_base + chunk_end - 1)
            rest = gl.exp2(gl.minimum((chunk_high - end_high) + (chunk_low - end_low), 0.0))
        async_copy.wait_group(2 * STAGES - 2)
        lanes: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [BK // 32, 32 * warps // BK], [0, 1])
        columns = as_columns(k_smem.load(lanes), BK, D)
        if NORMALIZED:
            z_smem = gl.allocate_shared_memory(gl.bfloat16, [D, D], tile)
            z_smem.store(z.to(gl.bfloat16))
            fence_async_shared()
            dk = warpgroup_mma(k_smem, z_smem, dk)
        v = v_smem.load(left)
        k_tiles = ()
        for b in gl.static_range(D // 16):
            k_tiles = k_tiles + (k_smem.slice(16 * b, 16, 1).load(left),)
        for a in gl.static_range(D // 16):
            for step in range(16 // COUNT * a, 16 // COUNT * (a + 1)):
                slot = step % STAGES
                async_copy.wait_group(STAGES - 2)
                fence_async_shared()
                for m in gl.static_range(COUNT):
                    scale = columns.index(COUNT * step + m).load(gl.SliceLayout(1, left))
                    rows = ring.index(COUNT * slot + m)
                    dk = warpgroup_mma(multiply(v, scale[:, None]), rows.permute((1, 0)), dk, is_async=True)
                    if m > 0:  # gives the scaled operands before it their registers back
                        dv = warpgroup_mma_wait(1, deps=(dv,))
                    dv = add_scaled_tiles(dv, k_tiles, scale, rows, a, D)
                    if m == 0:
                        copy_mirrored_rows(step + STAGES - 1, ring, dstate_base, D, V, SPLIT, COUNT, STAGES)
                dk, dv = warpgroup_mma_wait(0, deps=(dk, dv))
        async_copy.wait_group(0)
        if GATED:
            dk *= rest
            dv *= rest
            later_share = gl.sum(dk * k_smem.load(result).to(gl.float32), 1)

    for step in range(after):
        dk, dv, share = _key_value_tile(
            dk, dv, share, k_smem, v_smem, step, queries, q_base, do_base, dn_base, high_base, low_base, end_high,
            end_low, start, tiles, stride_qt, stride_qh, stride_dot, T, T_padded, D, V, BK, BQ, STAGES, GROUPS, GATED,
            NORMALIZED, False,
        )  # fmt: skip
    high, low = end_high, end_low
    if GATED:
        until_end = gl.exp2(gl.minimum((end_high - row_high) + (end_low - row_low), 0.0))
        dk *= until_end[:, None]
        dv *= until_end[:, None]
        later_share *= until_end
        share *= gl.convert_layout(until_end, by_score)
        high = gl.convert_layout(row_high, by_score)[:, None]
        low = gl.convert_layout(row_low, by_score)[:, None]
    for step in range(after, tiles * GROUPS):
        dk, dv, share = _key_value_tile(
            dk, dv, share, k_smem, v_smem, step, queries, q_base, do_base, dn_base, high_base, low_base, high, low,
            start, tiles, stride_qt, stride_qh, stride_dot, T, T_padded, D, V, BK, BQ, STAGES, GROUPS, GATED,
            NORMALIZED, True,
        )  # fmt: skip
    async_copy.wait_group(0)

    if GATED:
        gl.store(share_ptr + head * T_padded + j, gl.convert_layout(share, by_row) + later_share)
        gl.store(later_share_ptr + head * T_padded + j, later_share)
    column = gl.arange(0, D, layout=gl.SliceLayout(0, result))
    out = (batch * T * Hk + h) * D + j[:, None].to(gl.int64) * (Hk * D) + column[None, :]
    gl.store(dk_ptr + out, (dk + dk).to(gl.bfloat16), mask=j[:, None] < T)
    gl.store(dv_ptr + out, dv.to(gl.bfloat16), mask=j[:, None] < T)
