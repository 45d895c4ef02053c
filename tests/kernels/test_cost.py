"""The cost accounting counts what the chunked form executes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from icl_eval.kernels import default_chunk_size, power_attention, power_attention_flops
from icl_eval.kernels.power.cost import flops_by_operation
from tests.kernels.cases import Case


@pytest.mark.parametrize(
    ("head_dim", "value_dim", "degree", "expected"),
    [(64, 64, 2, 1024), (32, 32, 2, 256), (16, 16, 2, 64), (64, 64, 1, 64), (64, 64, 3, 16384), (8, 8, 2, 64)],
)
def test_default_chunk_size(head_dim: int, value_dim: int, degree: int, expected: int) -> None:
    assert default_chunk_size(head_dim, value_dim, degree) == expected


@pytest.mark.parametrize("seq_len", [16, 64, 96, 100])
@pytest.mark.parametrize(("degree", "normalization"), [(1, "none"), (2, "row_sum"), (2, "none")])
@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("stateful", [False, True])
def test_flops_are_those_executed(seq_len: int, degree: int, normalization: str, heads: int, stateful: bool) -> None:
    """Exactly equal: the backend multiplies full squares and pads the last chunk, as ``causal=False`` counts."""
    case = Case(B=3, T=seq_len, H=heads, V=5, degree=degree, normalization=normalization, stateful=stateful)
    x = case.inputs(dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        power_attention(
            x["q"],
            x["k"],
            x["v"],
            x["log_g"],
            **case.options,
            chunk_size=16,
            initial_state=(x["S"], x.get("z")) if stateful else None,
            return_state=stateful,
            backend="chunked",
        )
    counted = flops_by_operation(
        seq_len,
        head_dim=8,
        value_dim=5,
        degree=degree,
        chunk_size=16,
        normalization=normalization,
        causal=False,
        kv_groups=heads // 2,
        initial_state=stateful,
        return_state=stateful,
    )
    assert counter.get_total_flops() == 3 * heads * counted.total


def test_causal_count_leaves_out_what_the_mask_hides() -> None:
    sizes = {"head_dim": 8, "value_dim": 8, "degree": 2, "normalization": "none"}
    full, causal = (power_attention_flops(64, **sizes, chunk_size=64, causal=causal) for causal in (False, True))
    assert full == 2 * 64 * 64 * 16
    assert causal == full * 65 / 128
    # 4 chunks: 3 update a state of 36 features, 3 query it.
    chunked = power_attention_flops(64, **sizes, chunk_size=16)
    assert chunked == 4 * 16 * 17 / 2 * 2 * 16 + 2 * (3 * 16) * 2 * 36 * 8


def test_cost_per_token_does_not_grow_with_the_sequence() -> None:
    sizes = {"head_dim": 64, "value_dim": 64, "degree": 2}
    per_token = [power_attention_flops(T, **sizes) / T for T in (2**16, 2**20)]
    assert per_token[1] == pytest.approx(per_token[0], rel=0.02)
