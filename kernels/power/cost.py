"""What power attention costs: its chunk size and the FLOPs of its chunked form (arXiv 2507.04239, section 3).

FLOPs are those of matrix products, 2 per multiply-add, on the mathematical state (``spow`` features): building the
embedding and element-wise work are not counted, as is usual.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from icl_eval.kernels.power.embedding import expanded_dim

MIN_CHUNK_SIZE = 64


class OperationFlops(NamedTuple):
    """Forward FLOPs of one query head over a sequence, by the paper's operations."""

    attention: float
    update_state: float
    query_state: float

    @property
    def total(self) -> float:
        return sum(self)


def default_chunk_size(head_dim: int, value_dim: int, degree: int) -> int:
    """Tokens per chunk where attention inside a chunk costs about as much as updating and querying the state.

    Attention in full squares costs ``2 c² (head_dim + value_dim)`` FLOPs per chunk and the query ``2 c D value_dim``:
    equal at ``c = D v / (d + v)``. The chunk is the power of two nearest to that (on a log scale), and at least 64. A
    smaller chunk saves few FLOPs but writes and reads more states; a larger one is dominated by attention.
    """
    balanced = expanded_dim(head_dim, degree) * value_dim / (head_dim + value_dim)
    return max(MIN_CHUNK_SIZE, 2 ** round(math.log2(balanced)))


def power_attention_flops(
    seq_len: int,
    *,
    head_dim: int,
    value_dim: int,
    degree: int,
    chunk_size: int | None = None,
    normalization: str = "row_sum",
    causal: bool = True,
    kv_groups: int = 1,
) -> float:
    """Forward FLOPs of the chunked form for one query head over ``seq_len`` tokens; see :func:`flops_by_operation`."""
    return flops_by_operation(
        seq_len,
        head_dim=head_dim,
        value_dim=value_dim,
        degree=degree,
        chunk_size=chunk_size,
        normalization=normalization,
        causal=causal,
        kv_groups=kv_groups,
    ).total


def flops_by_operation(
    seq_len: int,
    *,
    head_dim: int,
    value_dim: int,
    degree: int,
    chunk_size: int | None = None,
    normalization: str = "row_sum",
    causal: bool = True,
    kv_groups: int = 1,
    initial_state: bool = False,
    return_state: bool = False,
) -> OperationFlops:
    """Forward FLOPs of the chunked form for one query head, by operation.

    The first chunk has no state to query unless there is an ``initial_state``, and the last updates none unless the
    state is returned; a sequence of at most one chunk is therefore plain attention.

    Args:
        seq_len: tokens.
        chunk_size: tokens; :func:`default_chunk_size` if None.
        normalization: ``"row_sum"`` carries one more value column (the weights' sum).
        causal: count attention on and below the diagonal, and a last partial chunk as long as it is. Without it, count
            what the pure-torch chunked backend executes: full squares, the last chunk padded to a whole one.
        kv_groups: query heads that share one key-value head, and so its state update.
    """
    state_dim = expanded_dim(head_dim, degree)
    columns = value_dim + (normalization == "row_sum")
    chunk = min(chunk_size or default_chunk_size(head_dim, value_dim, degree), seq_len)
    n_chunks = -(-seq_len // chunk)
    last = seq_len - (n_chunks - 1) * chunk if causal else chunk
    pairs = (n_chunks - 1) * _pairs(chunk, causal) + _pairs(last, causal)
    queried = (n_chunks - 1) * chunk - chunk + last if n_chunks > 1 else 0
    if initial_state:
        queried = (n_chunks - 1) * chunk + last
    updated = (n_chunks - 1) * chunk + (last if return_state else 0)
    return OperationFlops(
        attention=2.0 * pairs * (head_dim + columns),
        update_state=2.0 * updated * state_dim * columns / kv_groups,
        query_state=2.0 * queried * state_dim * columns,
    )


def _pairs(tokens: int, causal: bool) -> int:
    return tokens * (tokens + 1) // 2 if causal else tokens * tokens
