"""The power embedding and its sizes."""

from __future__ import annotations

import pytest
import torch

from icl_eval.kernels import expanded_dim, power_embedding

# arXiv 2507.04239, table 3 (head_dim 64).
PAPER_STATE_SIZES = {
    2: (4096, 2080),
    3: (262144, 45760),
    4: (16777216, 766480),
    5: (1073741824, 10424128),
    6: (68719476736, 119877472),
}


@pytest.mark.parametrize("degree", PAPER_STATE_SIZES)
def test_state_sizes_are_the_papers(degree: int) -> None:
    assert (expanded_dim(64, degree, "tpow"), expanded_dim(64, degree, "spow")) == PAPER_STATE_SIZES[degree]


@pytest.mark.parametrize(("degree", "d_tile", "expected"), [(2, 8, 36 * 64), (2, 16, 10 * 256), (3, 4, 816 * 64)])
def test_tspow_size(degree: int, d_tile: int, expected: int) -> None:
    assert expanded_dim(64, degree, "tspow", d_tile) == expected


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize(("kind", "d_tile"), [("tpow", None), ("spow", None), ("tspow", None), ("tspow", 2)])
def test_inner_product_of_embeddings_is_the_power(kind: str, d_tile: int | None, degree: int) -> None:
    q, k = torch.randn(2, 3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    phi_q, phi_k = (power_embedding(x, degree, kind, d_tile) for x in (q, k))
    assert phi_q.shape == (3, 5, expanded_dim(8, degree, kind, d_tile))
    torch.testing.assert_close((phi_q * phi_k).sum(-1), (q * k).sum(-1) ** degree)


def test_spow_order_is_lexicographic() -> None:
    phi = power_embedding(torch.tensor([2.0, 3.0, 5.0]), 2)
    torch.testing.assert_close(phi, torch.tensor([4, 6 * 2**0.5, 10 * 2**0.5, 9, 15 * 2**0.5, 25]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((64, 2, "spw"), r"kind must be one of 'tpow', 'spow', 'tspow', got 'spw'; did you mean 'spow'\?"),
        ((64, 0), "degree must be an integer of at least 1, got 0"),
        ((0, 2), "head_dim must be an integer of at least 1, got 0"),
        ((10, 2, "tspow"), "d_tile must divide head_dim=10, got 8"),
        ((64, 2, "spow", 8), "d_tile is used by kind='tspow' alone"),
    ],
)
def test_bad_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expanded_dim(*arguments)
