"""Pieces of Triton code that the power-attention kernels share.

Inside kernels the state is kept without weights, ``S[i, j] = Σ_t k_i k_j v``, in the order of :func:`state_rows`: rows
(i, j) of all j for the lower half of i, and of j in the upper half for the upper half of i. The quarter left out is the
mirror of one that is kept. Gates come as running sums inside a chunk, in powers of two, as a pair of float32 (high and
low part of a float64), so that differences of long sums are exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


def split_of(head_dim: int) -> int:
    """First element of the upper half; below 32 elements the whole square is kept: matrix units want 16 columns."""
    return head_dim // 2 if head_dim >= 32 else head_dim


def state_rows(head_dim: int, degree: int) -> int:
    """Rows of the state kept inside kernels."""
    if degree == 1:
        return head_dim
    split = split_of(head_dim)
    return split * head_dim + (head_dim - split) ** 2


@triton.jit
def power(s, DEGREE: tl.constexpr):
    """s^DEGREE, element-wise."""
    if DEGREE == 1:
        result = s
    elif DEGREE == 2:
        result = s * s
    elif DEGREE == 3:
        result = s * s * s
    else:
        square = s * s
        result = square * square
    return result


@triton.jit
def times_slope(x, s, DEGREE: tl.constexpr):
    """x · d(s^DEGREE)/ds, element-wise."""
    if DEGREE == 1:
        result = x
    elif DEGREE == 2:
        result = x * (2.0 * s)
    elif DEGREE == 3:
        result = x * (3.0 * s * s)
    else:
        result = x * (4.0 * s * s * s)
    return result


@triton.jit
def gate_between(later_high, later_low, earlier_high, earlier_low):
    """Factor of the gates after an earlier token up to a later one, from their running sums; never above 1."""
    return tl.exp2(tl.minimum((later_high - earlier_high) + (later_low - earlier_low), 0.0))


@triton.jit
def mirrored_rows(i, D: tl.constexpr, SPLIT: tl.constexpr):
    """Where rows (i, 0), ..., (i, D-1) of the symmetric state are kept."""
    j = tl.arange(0, D)
    rows = i * D + j
    if SPLIT < D:
        kept = SPLIT * D + (i - SPLIT) * (D - SPLIT) + j - SPLIT
        rows = tl.where(i < SPLIT, rows, tl.where(j < SPLIT, j * D + i, kept))
    return rows


@triton.jit
def as_accumulator(x, N: tl.constexpr, PRECISION: tl.constexpr):
    """x [M, N] unchanged, multiplied by the identity: it lies in registers as the result of a matrix product does.

    A left operand made of it by element-wise scaling needs no movement between threads; from a load, the compiler would
    move every scaled copy through shared memory.
    """
    n = tl.arange(0, N)
    identity = tl.where(n[:, None] == n[None, :], 1.0, 0.0).to(x.dtype)
    return tl.dot(x, identity, input_precision=PRECISION).to(x.dtype)
