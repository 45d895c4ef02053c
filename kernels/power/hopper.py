"""The kernels that hold most of the time, written for Hopper's asynchronous matrix units.

Triton waits for a matrix product whose left operand lies in registers before it scales the next one. Here, in Gluon
(Triton's language with explicit layouts), scaling one operand overlaps with the product of the one before. They take
the same arguments and give the same states and results as those of :mod:`update_state`, :mod:`forward` and
:mod:`backward`, for degree 2, bfloat16, and keys and values of as many features: 64, or 32 but for update_state.
"""

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

# Triton 3.6 has these two under other names.
async_load = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
reinterpret = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret


@gluon.jit
def _multiply(x, y):
    """x · y in bfloat16, two elements an instruction."""
    return gl.inline_asm_elementwise(
        "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def _copy_tile(slot, ptr, first, stride, T, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Asks for rows first..first+ROWS-1 of a matrix, COLUMNS wide, into shared memory; zero from row T on."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // COLUMNS, COLUMNS // 8], [gl.num_warps(), 1], [1, 0])
    row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
    source = ptr + row[:, None].to(gl.int64) * stride + column[None, :]
    async_load(slot, source, mask=row[:, None] < T)


@gluon.jit
def _copy_update(
    step, x_smem, v_smem, scale_smem, gate_smem, x_ptr, v_ptr, xt_ptr, gate_ptr, stride_xt, stride_xh, stride_vt,
    stride_vh, start, chunk, T, T_padded, D: gl.constexpr, V: gl.constexpr, N: gl.constexpr, COUNT: gl.constexpr,
    BT: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """Asks for what step ``step`` of :func:`_accumulate` reads; past the last, for the last again."""
    slot = step % STAGES
    tiles = chunk // BT
    step = gl.minimum(step, tiles * GROUPS - 1)
    first = start + step % tiles * BT
    g = (step // tiles).to(gl.int64)
    _copy_tile(x_smem.index(slot), x_ptr + g * stride_xh, first, stride_xt, T, BT, N)
    _copy_tile(v_smem.index(slot), v_ptr + g * stride_vh, first, stride_vt, T, BT, V)
    layout: gl.constexpr = gl.BlockedLayout([1, 2], [1, 32], [4, 1], [1, 0])
    row = gl.arange(0, COUNT, layout=gl.SliceLayout(1, layout))
    t = gl.arange(0, BT, layout=gl.SliceLayout(0, layout))
    scales = xt_ptr + g * (D * T_padded) + first
    async_load(scale_smem.index(slot), scales + row[:, None] * T_padded + t[None, :])
    if GATED:
        t = gl.arange(0, BT, layout=gl.BlockedLayout([1], [32], [4], [0]))
        async_load(gate_smem.index(slot), gate_ptr + first + t)
    async_copy.commit_group()


@gluon.jit
def _accumulate(
    x_ptr, v_ptr, xt_ptr, gate_ptr, out_ptr, stride_xt, stride_xh, stride_vt, stride_vh, start, chunk, T, T_padded,
    D: gl.constexpr, V: gl.constexpr, N: gl.constexpr, COUNT: gl.constexpr, BT: gl.constexpr, STAGES: gl.constexpr,
    GROUPS: gl.constexpr, GATED: gl.constexpr,
):  # fmt: skip
    """State rows (i, j) for COUNT values of i and N of j: Σ_t (v gate x_i) x_j, held transposed, [V, N] for each i."""
    result: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    left: gl.constexpr = gl.DotOperandLayout(0, result, 2)
    x_tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BT, N], gl.bfloat16)
    v_tile: gl.constexpr = gl.NVMMASharedLayout.get_default_for([BT, V], gl.bfloat16)
    line: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    x_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BT, N], x_tile)
    v_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, BT, V], v_tile)
    scale_smem = gl.allocate_shared_memory(gl.bfloat16, [STAGES, COUNT, BT], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    gate_smem = gl.allocate_shared_memory(gl.float32, [STAGES, BT], line)

    sums = ()
    for _ in gl.static_range(COUNT):
        sums = sums + (gl.zeros([V, N], gl.float32, result),)
    for step in gl.static_range(STAGES - 1):
        _copy_update(
            step, x_smem, v_smem, scale_smem, gate_smem, x_ptr, v_ptr, xt_ptr, gate_ptr, stride_xt, stride_xh,
            stride_vt, stride_vh, start, chunk, T, T_padded, D, V, N, COUNT, BT, STAGES, GROUPS, GATED,
        )  # fmt: skip
    for step in range(chunk // BT * GROUPS):
        slot = step % STAGES
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        v = v_smem.index(slot).permute((1, 0)).load(left)
        if GATED:
            gate = gate_smem.index(slot).load(gl.SliceLayout(0, left)).to(gl.bfloat16)
            v = _multiply(v, gate[None, :])
        x = x_smem.index(slot)
        scales = reinterpret(scale_smem.index(slot), gl.bfloat16, [COUNT, BT], line)
        scale = scales.index(0).load(gl.SliceLayout(0, left))
        running = warpgroup_mma(_multiply(v, scale[None, :]), x, sums[0], is_async=True)
        _copy_update(
            step + STAGES - 1, x_smem, v_smem, scale_smem, gate_smem, x_ptr, v_ptr, xt_ptr, gate_ptr, stride_xt,
            stride_xh, stride_vt, stride_vh, start, chunk, T, T_padded, D, V, N, COUNT, BT, STAGES, GROUPS, GATED,
        )  # fmt: skip
        updated = ()
        for n in gl.static_range(1, COUNT):
            scale = scales.index(n).load(gl.SliceLayout(0, left))
            scaled = _multiply(v, scale[None, :])
            before = running
            running = warpgroup_mma(scaled, x, sums[n], is_async=True)
            updated = updated + (warpgroup_mma_wait(1, deps=(before,)),)
        # Products that run on past the end of an iteration would be serialised by the assembler.
        sums = updated + (warpgroup_mma_wait(0, deps=(running,)),)
    async_copy.wait_group(0)  # the tiles' memory is used again for the results, which a late copy would overwrite

    lines: gl.constexpr = gl.BlockedLayout([8, 1], [8, 4], [1, 4], [0, 1])
    row = gl.arange(0, V, layout=gl.SliceLayout(1, lines))
    j = gl.arange(0, N, layout=gl.SliceLayout(0, lines))
    for n in gl.static_range(COUNT):
        total = gl.convert_layout(sums[n].to(gl.bfloat16), lines)
        gl.store(out_ptr + (n * N + j)[None, :] * V + row[:, None], total)


@gluon.jit(do_not_specialize=RUN_TIME_SIZES)
def update_state_kernel(
    x_ptr, xt_ptr, v_ptr, gate_ptr, state_ptr, stride_xb, stride_xt, stride_xh, stride_vb, stride_vt, stride_vh, Hk, T,
    T_padded, chunk, n_updates, stride_state, slots, D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr,
    GROUPS: gl.constexpr, GATED: gl.constexpr, COUNT: gl.constexpr, BT: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """As :func:`icl_eval.kernels.power.update_state.update_state_kernel`; ``xt`` is bfloat16."""
    low_groups: gl.constexpr = SPLIT // COUNT
    high_groups: gl.constexpr = (D - SPLIT) // (2 * COUNT)
    group = gl.program_id(0) % (low_groups + high_groups)
    rest = gl.program_id(0) // (low_groups + high_groups)
    n = rest % n_updates
    head = (rest // n_updates).to(gl.int64)
    x = x_ptr + head // Hk * stride_xb + head % Hk * GROUPS * stride_xh
    v = v_ptr + head // Hk * stride_vb + head % Hk * GROUPS * stride_vh
    xt = xt_ptr + head * GROUPS * D * T_padded
    gate = gate_ptr + head * T_padded
    out = state_ptr + (head * slots + n) * stride_state
    if group < low_groups:
        i = group * COUNT
        _accumulate(
            x, v, xt + i * T_padded, gate, out + i * D * V, stride_xt, stride_xh, stride_vt, stride_vh, n * chunk,
            chunk, T, T_padded, D, V, D, COUNT, BT, STAGES, GROUPS, GATED,
        )  # fmt: skip
    else:
        i = (group - low_groups) * 2 * COUNT
        _accumulate(
            x + SPLIT, v, xt + (SPLIT + i) * T_padded, gate, out + (SPLIT * D + i * (D - SPLIT)) * V, stride_xt,
            stride_xh, stride_vt, stride_vh, n * chunk, chunk, T, T_padded, D, V, D - SPLIT, 2 * COUNT, BT, STAGES,
            GROUPS, GATED,
        )  # fmt: skip


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
def _copy_key_value(
    step, ring, k_ptr, v_ptr, first, stride_kt, stride_vt, T, D: gl.constexpr, V: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for tile ``step`` of BN keys and values, counted from token ``first``."""
    slot = step % STAGES
    _copy_tile(ring.index(2 * slot).slice(0, BN, 0), k_ptr, first + step * BN, stride_kt, T, BN, D)
    _copy_tile(ring.index(2 * slot + 1).slice(0, BN, 0), v_ptr, first + step * BN, stride_vt, T, BN, V)
    async_copy.commit_group()


@gluon.jit
def _add_scaled_tiles(acc, tiles, scale, state, A: gl.constexpr, D: gl.constexpr):
    """acc + (x · scale) S for tiles of 16 columns of x, from tile A on: those after it stand for their mirrors too."""
    acc = warpgroup_mma(_multiply(tiles[A], scale[:, None]), state.slice(16 * A, 16, 0), acc, is_async=True)
    twice = scale + scale
    for b in gl.static_range(A + 1, D // 16):
        acc = warpgroup_mma(_multiply(tiles[b], twice[:, None]), state.slice(16 * b, 16, 0), acc, is_async=True)
    return acc


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
                acc = _add_scaled_tiles(acc, tiles, scale, ring.index(COUNT * slot + n), a, D)
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
    lanes: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [4, 1], [0, 1])
    own = start + gl.arange(0, BM, layout=gl.SliceLayout(1, lanes))
    d = gl.arange(0, D, layout=gl.SliceLayout(0, lanes))
    q = gl.load(q_base + own[:, None].to(gl.int64) * stride_qt + d[None, :], mask=own[:, None] < T, other=0.0)
    q_smem.store(q)

    acc = gl.zeros([BM, V], gl.float32, result)
    row_sum = gl.zeros([BM], gl.float32, by_row)
    first_high, first_low = 0.0, 0.0
    if GATED:
        if start > chunk_start:
            first_high = gl.load(high_base + start - 1)
            first_low = gl.load(low_base + start - 1)
        row_high = gl.load(high_base + t)
        row_low = gl.load(low_base + t)

    if n > 0 or HAS_INITIAL:
        place = kv_head * (n_chunks + 1) + n
        transposed = gl.allocate_shared_memory(gl.bfloat16, [D, BM], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        transposed.permute((1, 0)).store(q)
        columns = reinterpret(transposed, gl.bfloat16, [D, BM], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        acc = _query_state(
            acc, q_base, stride_qt, t, T, ring, columns, state_ptr + place * ROWS * V, D, V, SPLIT, COUNT, STAGES
        )
        if NORMALIZED:
            blocked: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
            z_row = gl.arange(0, D, layout=gl.SliceLayout(1, blocked))
            z_column = gl.arange(0, D, layout=gl.SliceLayout(0, blocked))
            z = gl.load(z_ptr + place * D * D + z_row[:, None] * D + z_column[None, :]).to(gl.bfloat16)
            z_smem = ring.index(0).slice(0, D, 0)
            z_smem.store(z)
            fence_async_shared()
            qz = warpgroup_mma(q_smem, z_smem, gl.zeros([BM, D], gl.float32, result), use_acc=False)
            row_sum = gl.sum(qz * q_smem.load(result).to(gl.float32), 1)
        if GATED:
            acc *= gl.exp2(first_high)
            row_sum *= gl.exp2(first_high)

    for step in gl.static_range(STAGES - 1):
        _copy_key_value(step, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
    before = (start - chunk_start) // BN
    for step in range(before):
        j = chunk_start + step * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, scored))
        if GATED:
            since = (first_high - gl.load(high_base + j)) + (first_low - gl.load(low_base + j))
        slot = step % STAGES
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        k = ring.index(2 * slot).slice(0, BN, 0)
        v = ring.index(2 * slot + 1).slice(0, BN, 0)
        zero = gl.zeros([BM, BN], gl.float32, scored)
        scores = warpgroup_mma(q_smem, k.permute((1, 0)), zero, use_acc=False, is_async=True)
        _copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
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
        slot = step % STAGES
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        scores = warpgroup_mma(
            q_smem,
            ring.index(2 * slot).slice(0, BN, 0).permute((1, 0)),
            gl.zeros([BM, BN], gl.float32, scored),
            use_acc=False,
        )
        _copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
        weights = scores * scores
        if GATED:
            high = gl.convert_layout(row_high, gl.SliceLayout(1, scored))[:, None] - gl.load(high_base + j)[None, :]
            low = gl.convert_layout(row_low, gl.SliceLayout(1, scored))[:, None] - gl.load(low_base + j)[None, :]
            weights *= gl.exp2(gl.minimum(high + low, 0.0))
        weights = gl.where(scored_t[:, None] >= j[None, :], weights, 0.0)
        if NORMALIZED:
            row_sum += gl.convert_layout(gl.sum(weights, 1), by_row)
        acc = warpgroup_mma(
            gl.convert_layout(weights.to(gl.bfloat16), weighing), ring.index(2 * slot + 1).slice(0, BN, 0), acc
        )
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


@gluon.jit
def _copy_mirrored_rows(
    step, ring, state_ptr, D: gl.constexpr, V: gl.constexpr, SPLIT: gl.constexpr, COUNT: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for the rows (i, j) of the symmetric state for COUNT values of i, the first of them COUNT step, and all j;
    past the last, for nothing."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // V, V // 8], [gl.num_warps(), 1], [1, 0])
    j = gl.arange(0, D, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, V, layout=gl.SliceLayout(0, layout))
    slot = step % STAGES
    for n in gl.static_range(COUNT):
        i = COUNT * step + n
        upper = gl.where(j < SPLIT, j * D + i, SPLIT * D + (i - SPLIT) * (D - SPLIT) + j - SPLIT)
        row = gl.where(i < SPLIT, i * D + j, upper)
        source = state_ptr + row[:, None] * V + column[None, :]
        async_load(ring.index(COUNT * slot + n).slice(0, D, 0), source, mask=(j < gl.where(i < D, D, 0))[:, None])
    async_copy.commit_group()


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
    lanes: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [4, 1], [0, 1])
    own = start + gl.arange(0, BM, layout=gl.SliceLayout(1, lanes))
    d = gl.arange(0, D, layout=gl.SliceLayout(0, lanes))
    q = gl.load(q_base + own[:, None].to(gl.int64) * stride_qt + d[None, :], mask=own[:, None] < T, other=0.0)
    q_smem.store(q)
    _copy_tile(do_smem, do_base, start, H * V, T, BM, V)
    async_copy.commit_group()

    acc = gl.zeros([BM, D], gl.float32, result)
    share = gl.zeros([BM], gl.float32, by_row)
    first_high, first_low = 0.0, 0.0
    dn = gl.load(dn_ptr + head * T_padded + t) if NORMALIZED else share
    if GATED:
        if start > chunk_start:
            first_high = gl.load(high_base + start - 1)
            first_low = gl.load(low_base + start - 1)
        row_high = gl.load(high_base + t)
        row_low = gl.load(low_base + t)

    if n > 0 or HAS_INITIAL:
        place = kv_head * (n_chunks + 1) + n
        state_base = state_ptr + place * ROWS * V
        transposed = gl.allocate_shared_memory(gl.bfloat16, [D, BM], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        transposed.permute((1, 0)).store(q)
        columns = reinterpret(transposed, gl.bfloat16, [D, BM], gl.SwizzledSharedLayout(1, 1, 1, [0]))
        for step in gl.static_range(STAGES - 1):
            _copy_mirrored_rows(step, ring, state_base, D, V, SPLIT, COUNT, STAGES)
        async_copy.wait_group(STAGES - 1)
        do = do_smem.load(left)
        for step in range(D // COUNT):
            slot = step % STAGES
            async_copy.wait_group(STAGES - 2)
            fence_async_shared()
            for m in gl.static_range(COUNT):
                scale = columns.index(COUNT * step + m).load(gl.SliceLayout(1, left))
                rows = ring.index(COUNT * slot + m).slice(0, D, 0)
                acc = warpgroup_mma(_multiply(do, scale[:, None]), rows.permute((1, 0)), acc, is_async=True)
                if m == 0:
                    _copy_mirrored_rows(step + STAGES - 1, ring, state_base, D, V, SPLIT, COUNT, STAGES)
            acc = warpgroup_mma_wait(0, deps=(acc,))
        async_copy.wait_group(0)
        if NORMALIZED:
            blocked: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
            z_row = gl.arange(0, D, layout=gl.SliceLayout(1, blocked))
            z_column = gl.arange(0, D, layout=gl.SliceLayout(0, blocked))
            z = gl.load(z_ptr + place * D * D + z_row[:, None] * D + z_column[None, :]).to(gl.bfloat16)
            z_smem = ring.index(0).slice(0, D, 0)
            z_smem.store(z)
            fence_async_shared()
            qz = warpgroup_mma(q_smem, z_smem, gl.zeros([BM, D], gl.float32, result), use_acc=False)
            acc += qz * dn[:, None]
        acc *= 2.0
        if GATED:
            acc *= gl.exp2(first_high)
            share = gl.sum(acc * q_smem.load(result).to(gl.float32), 1)

    for step in gl.static_range(STAGES - 1):
        _copy_key_value(step, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
    before = (start - chunk_start) // BN
    score_dn = gl.convert_layout(dn, by_score)
    for step in range(before):
        j = chunk_start + step * BN + gl.arange(0, BN, layout=gl.SliceLayout(0, scored))
        if GATED:
            since = (first_high - gl.load(high_base + j)) + (first_low - gl.load(low_base + j))
        slot = step % STAGES
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        k = ring.index(2 * slot).slice(0, BN, 0)
        v = ring.index(2 * slot + 1).slice(0, BN, 0)
        zero = gl.zeros([BM, BN], gl.float32, scored)
        scores = warpgroup_mma(q_smem, k.permute((1, 0)), zero, use_acc=False, is_async=True)
        dscores = warpgroup_mma(do_smem, v.permute((1, 0)), zero, use_acc=False, is_async=True)
        _copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
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
        slot = step % STAGES
        async_copy.wait_group(STAGES - 2)
        fence_async_shared()
        k = ring.index(2 * slot).slice(0, BN, 0)
        v = ring.index(2 * slot + 1).slice(0, BN, 0)
        zero = gl.zeros([BM, BN], gl.float32, scored)
        scores = warpgroup_mma(q_smem, k.permute((1, 0)), zero, use_acc=False)
        dscores = warpgroup_mma(do_smem, v.permute((1, 0)), zero, use_acc=False)
        _copy_key_value(step + STAGES - 1, ring, k_base, v_base, chunk_start, stride_kt, stride_vt, T, D, V, BN, STAGES)
        if NORMALIZED:
            dscores += score_dn[:, None]
        dscores *= 2.0 * scores
        if GATED:
            high = gl.convert_layout(row_high, by_score)[:, None] - gl.load(high_base + j)[None, :]
            low = gl.convert_layout(row_low, by_score)[:, None] - gl.load(low_base + j)[None, :]
            dscores *= gl.exp2(gl.minimum(high + low, 0.0))
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
    _copy_tile(ring.index(2 * slot), q_ptr + g * stride_qh, first, stride_qt, T, BQ, D)
    _copy_tile(ring.index(2 * slot + 1), do_ptr + g * V, first, stride_dot, T, BQ, V)
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
    _copy_tile(k_smem, k_ptr + batch * stride_kb + h * stride_kh, start, stride_kt, T, BK, D)
    _copy_tile(v_smem, v_ptr + batch * stride_vb + h * stride_vh, start, stride_vt, T, BK, V)
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
            _copy_mirrored_rows(step, ring, dstate_base, D, V, SPLIT, COUNT, STAGES)
        if NORMALIZED:
            blocked: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [warps, 1], [1, 0])
            z_row = gl.arange(0, D, layout=gl.SliceLayout(1, blocked))
            z_column = gl.arange(0, D, layout=gl.SliceLayout(0, blocked))
            z = gl.load(dz_ptr + place * D * D + z_row[:, None] * D + z_column[None, :])
        if GATED:
            chunk_high = gl.load(high_base + chunk_end - 1)
            chunk_low = gl.load(low_base + chunk_end - 1)
            rest = gl.exp2(gl.minimum((chunk_high - end_high) + (chunk_low - end_low), 0.0))
        async_copy.wait_group(2 * STAGES - 2)
        lanes: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [BK // 32, 32 * warps // BK], [0, 1])
        transposed = gl.allocate_shared_memory(gl.bfloat16, [D, BK], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
        transposed.permute((1, 0)).store(k_smem.load(lanes))
        columns = reinterpret(transposed, gl.bfloat16, [D, BK], gl.SwizzledSharedLayout(1, 1, 1, [0]))
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
                    dk = warpgroup_mma(_multiply(v, scale[:, None]), rows.permute((1, 0)), dk, is_async=True)
                    if m > 0:  # gives the scaled operands before it their registers back
                        dv = warpgroup_mma_wait(1, deps=(dv,))
                    dv = _add_scaled_tiles(dv, k_tiles, scale, rows, a, D)
                    if m == 0:
                        _copy_mirrored_rows(step + STAGES - 1, ring, dstate_base, D, V, SPLIT, COUNT, STAGES)
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
