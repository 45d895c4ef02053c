"""The power embedding: a feature map φ with φ(q)·φ(k) = (q·k)^degree (arXiv 2507.04239, section 3).

Three kinds, all with the same inner product:

- ``tpow``: every ordered multi-index, ``d**p`` features.
- ``spow``: non-decreasing multi-indices, each weighted by the square root of its multiplicity: ``C(d+p-1, p)``
  features, the fewest possible. The canonical state of power attention is kept in this order.
- ``tspow``: the vector is cut in tiles of ``d_tile``; only non-decreasing tuples of tiles are kept, each with all its
  ``d_tile**p`` features: ``C(d/d_tile+p-1, p) * d_tile**p`` features, in blocks that suit matrix units.
"""

from __future__ import annotations

import difflib
import functools
import math

import torch
from torch import Tensor

KINDS = ("tpow", "spow", "tspow")


def expanded_dim(head_dim: int, degree: int, kind: str = "spow", d_tile: int | None = None) -> int:
    """Number of features of the power embedding of a vector of ``head_dim`` elements.

    ``d_tile`` (elements) is used by ``tspow`` alone; its default is the paper's, 8 up to degree 2 and 4 above.

    Raises:
        ValueError: a size below 1, an unknown kind, or a ``d_tile`` that does not divide ``head_dim``.
    """
    d_tile = _check(head_dim, degree, kind, d_tile)
    if kind == "tpow":
        return head_dim**degree
    if kind == "spow":
        return math.comb(head_dim + degree - 1, degree)
    return math.comb(head_dim // d_tile + degree - 1, degree) * d_tile**degree


def power_embedding(x: Tensor, degree: int, kind: str = "spow", d_tile: int | None = None) -> Tensor:
    """φ(x) along the last dimension: ``[..., d]`` to ``[..., expanded_dim(d, degree, kind, d_tile)]``, in x's dtype.

    Raises:
        ValueError: as :func:`expanded_dim`.
    """
    d_tile = _check(x.shape[-1], degree, kind, d_tile)
    index, weight = multi_indices(x.shape[-1], degree, kind, d_tile, x.device)
    features = x[..., index[0]]
    for factor in index[1:]:
        features = features * x[..., factor]
    return features * weight.to(x.dtype)


def spow_monomials(x: Tensor, degree: int) -> Tensor:
    """The products behind φ without their weights, features before tokens: ``[..., d, n]`` to ``[..., D_spow, n]``.

    With :func:`spow_weights` on the (smaller) state instead, and gathering whole rows of n tokens, this costs a
    fraction of :func:`power_embedding` on a CPU.
    """
    index, _ = multi_indices(x.shape[-2], degree, "spow", 1, x.device)
    features = x.index_select(-2, index[0]) if degree > 1 else x
    for factor in index[1:]:
        features = features * x.index_select(-2, factor)
    return features


def spow_weights(head_dim: int, degree: int, device: torch.device) -> Tensor:
    """Square roots of the multiplicities of the ``spow`` features, float64 [D_spow]."""
    return multi_indices(head_dim, degree, "spow", 1, device)[1]


@functools.lru_cache(maxsize=32)
def multi_indices(
    head_dim: int, degree: int, kind: str, d_tile: int, device: torch.device
) -> tuple[tuple[Tensor, ...], Tensor]:
    """The multi-index of every feature, as ``degree`` rows of D element indices, and its weight [D] in float64."""
    with torch.inference_mode(False):
        elements = torch.arange(head_dim)
        if kind == "tpow":
            index = torch.cartesian_prod(*[elements] * degree).reshape(-1, degree)
            weight = torch.ones(len(index), dtype=torch.float64)
        elif kind == "spow":
            index = torch.combinations(elements, degree, with_replacement=True)
            weight = _multiplicity(index).sqrt()
        else:
            tiles = torch.combinations(torch.arange(head_dim // d_tile), degree, with_replacement=True)
            inside = torch.cartesian_prod(*[torch.arange(d_tile)] * degree).reshape(-1, degree)
            index = (tiles[:, None, :] * d_tile + inside).reshape(-1, degree)
            weight = _multiplicity(tiles).sqrt().repeat_interleave(len(inside))
        return tuple(index.T.contiguous().to(device)), weight.to(device)


def _multiplicity(index: Tensor) -> Tensor:
    """How many orderings each non-decreasing multi-index [N, p] has: p! / prod(repetitions!), float64 [N]."""
    degree = index.shape[1]
    run = torch.ones(len(index), dtype=torch.float64)
    repetitions = torch.ones(len(index), dtype=torch.float64)
    for factor in range(1, degree):
        run = torch.where(index[:, factor] == index[:, factor - 1], run + 1, 1.0)
        repetitions *= run
    return math.factorial(degree) / repetitions


def _check(head_dim: int, degree: int, kind: str, d_tile: int | None) -> int:
    """Validates the arguments and returns the tile's side (1 where the kind has no tiles)."""
    for name, value in (("head_dim", head_dim), ("degree", degree)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")
    check_choice("kind", kind, KINDS)
    if kind != "tspow":
        if d_tile is not None:
            raise ValueError(f"d_tile is used by kind='tspow' alone, got d_tile={d_tile!r} with kind={kind!r}")
        return 1
    side = d_tile if d_tile is not None else (8 if degree <= 2 else 4)
    if not isinstance(side, int) or side < 1 or head_dim % side:
        raise ValueError(f"d_tile must divide head_dim={head_dim}, got {side!r}")
    return side


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError naming the argument, its value, the allowed ones and the nearest of them."""
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
    raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}; did you mean {near[0]!r}?")
