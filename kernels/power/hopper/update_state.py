"""What a chunk adds to the state."""

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
from icl_eval.kernels.power.hopper.tiles import async_load, copy_tile, multiply, reinterpret


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
    copy_tile(x_smem.index(slot), x_ptr + g * stride_xh, first, stride_xt, T, BT, N)
    copy_tile(v_smem.index(slot), v_ptr + g * stride_vh, first, stride_vt, T, BT, V)
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
            v = multiply(v, gate[None, :])
        x = x_smem.index(slot)
        scales = reinterpret(scale_smem.index(slot), gl.bfloat16, [COUNT, BT], line)
        scale = scales.index(0).load(gl.SliceLayout(0, left))
        running = warpgroup_mma(multiply(v, scale[None, :]), x, sums[0], is_async=True)
        _copy_update(
            step + STAGES - 1, x_smem, v_smem, scale_smem, gate_smem, x_ptr, v_ptr, xt_ptr, gate_ptr, stride_xt,
            stride_xh, stride_vt, stride_vh, start, chunk, T, T_padded, D, V, N, COUNT, BT, STAGES, GROUPS, GATED,
        )  # fmt: skip
        updated = ()
        for n in gl.static_range(1, COUNT):
            scale = scales.index(n).load(gl.SliceLayout(0, left))
            scaled = multiply(v, scale[None, :])
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
