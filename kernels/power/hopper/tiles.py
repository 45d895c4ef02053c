"""Tiles of Hopper's kernels: how they are asked for, scaled, and multiplied by rows of a state."""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import async_copy, fence_async_shared, warpgroup_mma

# Triton 3.6 has these two under other names.
async_load = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
reinterpret = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret


@gluon.jit
def multiply(x, y):
    """x · y in bfloat16, two elements an instruction."""
    return gl.inline_asm_elementwise(
        "mul.rn.bf16x2 $0, $1, $2;", "=r,r,r", [x, y], dtype=gl.bfloat16, is_pure=True, pack=2
    )


@gluon.jit
def copy_tile(slot, ptr, first, stride, T, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Asks for rows first..first+ROWS-1 of a matrix, COLUMNS wide, into shared memory; zero from row T on."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [256 // COLUMNS, COLUMNS // 8], [gl.num_warps(), 1], [1, 0])
    row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
    source = ptr + row[:, None].to(gl.int64) * stride + column[None, :]
    async_load(slot, source, mask=row[:, None] < T)


@gluon.jit
def copy_key_value(
    step, ring, k_ptr, v_ptr, first, stride_kt, stride_vt, T, D: gl.constexpr, V: gl.constexpr, BN: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Asks for tile ``step`` of BN keys and values, counted from token ``first``."""
    slot = step % STAGES
    copy_tile(ring.index(2 * slot).slice(0, BN, 0), k_ptr, first + step * BN, stride_kt, T, BN, D)
    copy_tile(ring.index(2 * slot + 1).slice(0, BN, 0), v_ptr, first + step * BN, stride_vt, T, BN, V)
    async_copy.commit_group()


@gluon.jit
def add_scaled_tiles(acc, tiles, scale, state, A: gl.constexpr, D: gl.constexpr):
    """acc + (x · scale) S for tiles of 16 columns of x, from tile A on: those after it stand for their mirrors too."""
    acc = warpgroup_mma(multiply(tiles[A], scale[:, None]), state.slice(16 * A, 16, 0), acc, is_async=True)
    twice = scale + scale
    for b in gl.static_range(A + 1, D // 16):
        acc = warpgroup_mma(multiply(tiles[b], twice[:, None]), state.slice(16 * b, 16, 0), acc, is_async=True)
    return acc


@gluon.jit
def copy_mirrored_rows(
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


@gluon.jit
def as_columns(x, ROWS: gl.constexpr, D: gl.constexpr):
    """x [ROWS, D] in shared memory by columns: ``index(i)`` is column i."""
    columns = gl.allocate_shared_memory(gl.bfloat16, [D, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [1, 0]))
    columns.permute((1, 0)).store(x)
    return reinterpret(columns, gl.bfloat16, [D, ROWS], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def load_tile(slot, ptr, first, stride, T, ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """As :func:`copy_tile`, now, and the tile in registers too."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [32, 1], [4, 1], [0, 1])
    row = first + gl.arange(0, ROWS, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout))
    x = gl.load(ptr + row[:, None].to(gl.int64) * stride + column[None, :], mask=row[:, None] < T, other=0.0)
    slot.store(x)
    return x


@gluon.jit
def arrived_key_value(step, ring, BN: gl.constexpr, STAGES: gl.constexpr):
    """Tile ``step`` of BN keys and values, once it has arrived."""
    slot = step % STAGES
    async_copy.wait_group(STAGES - 2)
    fence_async_shared()
    return ring.index(2 * slot).slice(0, BN, 0), ring.index(2 * slot + 1).slice(0, BN, 0)


@gluon.jit
def gates_before(high_base, low_base, start, chunk_start):
    """Running gates, high and low part, of the token before ``start``; 0 at the start of a chunk."""
    high, low = 0.0, 0.0
    if start > chunk_start:
        high = gl.load(high_base + start - 1)
        low = gl.load(low_base + start - 1)
    return high, low


@gluon.jit
def gates_between(row_high, row_low, high_base, low_base, j, rows: gl.constexpr):
    """What is left at each row, whose running gates are given, of each token j; at most 1."""
    high = gl.convert_layout(row_high, rows)[:, None] - gl.load(high_base + j)[None, :]
    low = gl.convert_layout(row_low, rows)[:, None] - gl.load(low_base + j)[None, :]
    return gl.exp2(gl.minimum(high + low, 0.0))


@gluon.jit
def times_normalizer(q_smem, ring, z_ptr, place, BM: gl.constexpr, D: gl.constexpr, layout: gl.constexpr):
    """q z [BM, D] of the normaliser at a place among all, which passes through the ring's first slot."""
    z_smem = ring.index(0).slice(0, D, 0)
    z_smem.store(load_normalizer(z_ptr, place, D).to(gl.bfloat16))
    fence_async_shared()
    return warpgroup_mma(q_smem, z_smem, gl.zeros([BM, D], gl.float32, layout), use_acc=False)


@gluon.jit
def load_normalizer(z_ptr, place, D: gl.constexpr):
    """The normaliser [D, D] at a place among all, in float32."""
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [gl.num_warps(), 1], [1, 0])
    row = gl.arange(0, D, layout=gl.SliceLayout(1, layout))
    column = gl.arange(0, D, layout=gl.SliceLayout(0, layout))
    return gl.load(z_ptr + place * D * D + row[:, None] * D + column[None, :])
