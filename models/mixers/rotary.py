"""Rotary position embedding (Su et al., 2021)."""

import math

import torch
from torch import Tensor

from icl_eval.kernels.power.operators import define_operator


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``[B, T, H, D]`` turned by the angles of a table, in float32 (float64 for float64), whatever autocast says."""
    first, second = x.to(cos.dtype).split(x.shape[-1] // 2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


def rotary_table(position: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``[..., D/2]`` of the angles at positions ``[...]``.

    Args:
        position: in float32 or float64, in which the angles are formed.
        dtype: of the table.
    """
    half = head_dim // 2
    frequency = base ** (-torch.arange(half, device=position.device, dtype=position.dtype) / half)
    angle = position[..., None] * frequency
    if angle.dtype != dtype:
        angle = angle.remainder(2 * math.pi).to(dtype)
    return angle.cos(), angle.sin()


def _fake_rotary_table(position: Tensor, head_dim: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape = (*position.shape, head_dim // 2)
    return position.new_empty(shape, dtype=dtype), position.new_empty(shape, dtype=dtype)


constant_rotary_table = define_operator("rotary_table", rotary_table, _fake_rotary_table)
"""As :func:`rotary_table`, of positions that nothing is differentiated by, as an operator of its own. Compilers would
otherwise form the angles again for every head, in both passes, and a power, a cosine and a sine take many times as long
as turning."""
