"""Between the canonical state (``spow`` order, square-root weights) and the kernels' order (see ``tiles``)."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from icl_eval.kernels.power.embedding import expanded_dim


def to_kernel_order(state: Tensor, head_dim: int, padded_dim: int, split: int, degree: int) -> Tensor:
    """[B, Hk, D_spow, n] to [B, Hk, rows, n] float32; features past ``head_dim`` are zero."""
    if degree == 1:
        return F.pad(state, (0, 0, 0, padded_dim - head_dim)).contiguous()
    index, scale, _, _ = _maps(head_dim, padded_dim, split, state.device)
    return state.index_select(2, index) * scale[:, None]


def to_canonical_order(state: Tensor, head_dim: int, padded_dim: int, split: int, degree: int) -> Tensor:
    """The inverse: [B, Hk, rows, n] to [B, Hk, D_spow, n]."""
    if degree == 1:
        return state[:, :, :head_dim].contiguous()
    _, _, index, scale = _maps(head_dim, padded_dim, split, state.device)
    return state.index_select(2, index) * scale[:, None]


@functools.lru_cache(maxsize=32)
def _maps(head_dim: int, padded_dim: int, split: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For degree 2, the canonical feature of every kernel row and its scale (0 for padding), and the other way round.

    Off the diagonal the canonical entry is √2 times the kernels'. Gradients go the same way as the states: a kernel's
    dS is that of one ordered pair, the canonical one that of both, divided by √2.
    """
    with torch.inference_mode(False):
        elements = torch.arange(padded_dim)
        lower = torch.cartesian_prod(elements[:split], elements)
        upper = torch.cartesian_prod(elements[split:], elements[split:])
        rows = torch.cat((lower, upper.reshape(-1, 2)))
        first, second = rows.min(dim=1).values, rows.max(dim=1).values
        feature = first * head_dim - first * (first - 1) // 2 + second - first
        real = second < head_dim
        scale = torch.where(first == second, 1.0, 0.5**0.5) * real
        pairs = torch.combinations(torch.arange(head_dim), 2, with_replacement=True)
        i, j = pairs.unbind(1)
        kept = split * padded_dim + (i - split) * (padded_dim - split) + j - split
        row = torch.where(i < split, i * padded_dim + j, kept)
        root = torch.where(i == j, 1.0, 2.0**0.5)
        assert len(row) == expanded_dim(head_dim, 2)
        return tuple(x.to(device) for x in (torch.where(real, feature, 0), scale, row, root))  # type: ignore[return-value]
