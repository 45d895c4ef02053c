"""Power attention in its chunked form, in plain differentiable torch: cost linear in T, for any device.

The sequence is cut into chunks; inside a chunk weights are computed as in attention, and everything before the chunk
is seen through the state (arXiv 2507.04239, section 3). The operations keep the paper's names. With
``normalization="row_sum"`` values carry a column of ones: its output is the row sum and its state the normaliser.

It computes in float32 (float64 for float64 inputs), whatever the inputs' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icl_eval.kernels.power.embedding import spow_monomials, spow_weights
from icl_eval.kernels.power.gates import bounded_log_gates, safe_divide
from icl_eval.kernels.power.reference import State


def chunked_power_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    *,
    degree: int,
    scale: float,
    normalization: str,
    chunk_size: int,
    initial_state: State | None,
    return_state: bool,
) -> tuple[Tensor, State | None]:
    """Output [B, T, H, V] in q's dtype and, if asked for, the final state (float32, or float64 for float64 inputs)."""
    (B, T, H, _), Hk, V = q.shape, k.shape[2], v.shape[-1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    chunk = min(chunk_size, T)
    if normalization == "row_sum":
        v = F.pad(v, (0, 1), value=1.0)

    # [B, Hk, N, ...]: N chunks; queries that share a key-value head are rows of one matrix.
    q_chunks = _cut(q * scale, chunk, dtype).unflatten(1, (Hk, H // Hk)).transpose(2, 3)  # [B, Hk, N, G, c, D]
    k_chunks, v_chunks = (_cut(x, chunk, dtype) for x in (k, v))  # [B, Hk, N, c, D | V']
    gates = None
    if log_g is not None:
        gates = _cut(bounded_log_gates(log_g)[..., None], chunk, torch.float64)[..., 0].cumsum(-1)  # [B, Hk, N, c]

    y = attention(q_chunks, k_chunks, v_chunks, gates, degree)
    n_chunks = y.shape[2]
    state = None if initial_state is None else _join_state(initial_state).to(dtype)
    if n_chunks > 1 or state is not None or return_state:
        n_updates = n_chunks if return_state else n_chunks - 1
        updates = update_state(k_chunks[:, :, :n_updates], v_chunks[:, :, :n_updates], gates, degree)
        before, state = discumsum(updates, gates, state, n_chunks)
        first = n_chunks - before.shape[2]
        if before.shape[2]:
            queried = query_state(
                q_chunks[:, :, first:], before, None if gates is None else gates[:, :, first:], degree
            )
            y = torch.cat((y[:, :, :first], y[:, :, first:] + queried), dim=2) if first else y + queried

    if normalization == "row_sum":
        y = safe_divide(y[..., :-1], y[..., -1:])
    y = y.permute(0, 2, 4, 1, 3, 5).reshape(B, n_chunks * chunk, H, V)[:, :T]
    return y.to(q.dtype), _split_state(state, normalization) if return_state and state is not None else None


def attention(q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, degree: int) -> Tensor:
    """Un-normalised causal attention inside chunks.

    q [B, Hk, N, G, c, D], k [B, Hk, N, c, D], v [B, Hk, N, c, V'], gates (running sums inside the chunk, float64)
    [B, Hk, N, c]; returns [B, Hk, N, G, c, V'].
    """
    G, c = q.shape[3:5]
    scores = (q.flatten(3, 4) @ k.transpose(-1, -2)).unflatten(3, (G, c))
    if gates is None:
        weights = _power(scores, degree).tril()
    else:
        after = torch.ones(c, c, dtype=torch.bool, device=q.device).triu(1)
        decay = (gates[..., :, None] - gates[..., None, :]).to(q.dtype).masked_fill(after, float("-inf")).exp()
        weights = _power(scores, degree) * decay[:, :, :, None]
    return (weights.flatten(3, 4) @ v).unflatten(3, (G, c))


def update_state(k: Tensor, v: Tensor, gates: Tensor | None, degree: int) -> Tensor:
    """What each chunk adds to the state by its end: φ(k)ᵀ v with the gates in between, [B, Hk, N, D_spow, V']."""
    if gates is not None:
        gates = gates[:, :, : k.shape[2]]
        v = v * (gates[..., -1:] - gates).exp().to(v.dtype)[..., None]
    return _weighted(spow_monomials(k.transpose(-1, -2), degree) @ v, k.shape[-1], degree)


def discumsum(updates: Tensor, gates: Tensor | None, state: Tensor | None, n_chunks: int) -> tuple[Tensor, Tensor]:
    """The discounted cumulative sum of the chunks' updates: the states that chunks start from, and the last state.

    Chunks that start from no state (the first, without an initial one) are left out.
    """
    before = []
    for n in range(n_chunks):
        if state is not None:
            before.append(state)
        if n < updates.shape[2]:
            update = updates[:, :, n]
            if state is not None:
                carried = state if gates is None else state * gates[:, :, n, -1, None, None].exp().to(state.dtype)
                update = carried + update
            state = update
    assert state is not None
    return torch.stack(before, dim=2) if before else updates[:, :, :0], state


def query_state(q: Tensor, state: Tensor, gates: Tensor | None, degree: int) -> Tensor:
    """What the queries [B, Hk, N, G, c, D] read of the states [B, Hk, N, D_spow, V']: [B, Hk, N, G, c, V']."""
    G, c = q.shape[3:5]
    monomials = spow_monomials(q.flatten(3, 4).transpose(-1, -2), degree)
    y = (monomials.transpose(-1, -2) @ _weighted(state, q.shape[-1], degree)).unflatten(3, (G, c))
    return y if gates is None else y * gates.exp().to(y.dtype)[:, :, :, None, :, None]


def _cut(x: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """[B, T, H, C] to chunks [B, H, N, c, C]; zeros fill the last one, and change neither output nor state."""
    missing = -x.shape[1] % chunk
    if missing:
        x = F.pad(x, (0, 0, 0, 0, 0, missing))
    return x.to(dtype).unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4).contiguous()


def _weighted(state: Tensor, head_dim: int, degree: int) -> Tensor:
    return state if degree == 1 else state * spow_weights(head_dim, degree, state.device).to(state.dtype)[:, None]


def _power(scores: Tensor, degree: int) -> Tensor:
    return scores if degree == 1 else scores.square() if degree == 2 else scores**degree


def _join_state(state: State) -> Tensor:
    matrix, normalizer = state
    return matrix if normalizer is None else torch.cat((matrix, normalizer[..., None]), dim=-1)


def _split_state(state: Tensor, normalization: str) -> State:
    if normalization == "none":
        return state, None
    return state[..., :-1].contiguous(), state[..., -1].contiguous()
