"""Linear recurrences with decay and a rank-one correction, in plain differentiable torch: any device, cost linear in T.

``S_t = diag(exp(w_t)) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ`` and ``y_t = S_tᵀ q_t`` for a state ``[K, V]`` a head:
gated linear attention without a and b, the delta rule with ``a = k`` and ``b = -β k``, RWKV-7 with both of its own.

It is computed in chunks. Inside one, ``u_t = a_tᵀ S_{t-1}`` solves a triangular system, after which everything is
products of matrices; the state is carried from chunk to chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from icl_eval.kernels.power.gates import bounded_log_gates

SCALAR_DECAY_CHUNK = 64
VECTOR_DECAY_CHUNK = 16
"""Tokens a chunk: with a decay a channel the decays between all pairs of a chunk exist at once, ``[c, c, K]``."""


def linear_recurrence(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor | None = None,
    a: Tensor | None = None,
    b: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence above for every head.

    Args:
        q, k: ``[B, T, H, K]``.
        v: ``[B, T, H, V]``.
        log_decay: w, at most 0: ``[B, T, H, 1]``, or ``[B, T, H, K]`` with one a channel; none without it.
        a, b: ``[B, T, H, K]``, both or neither.
        initial_state: ``[B, H, K, V]``; empty if not given.
        chunk_size: tokens a chunk.

    Returns:
        y ``[B, T, H, V]`` in v's dtype, and the state ``[B, H, K, V]``, computed in float32 (float64 for float64).
    """
    (B, T, H, K), V = q.shape, v.shape[-1]
    given_dtype, dtype = v.dtype, torch.promote_types(v.dtype, torch.float32)
    chunk = min(chunk_size or default_chunk(vector_decay=log_decay is not None and log_decay.shape[-1] > 1), T)
    state = q.new_zeros(B, H, K, V, dtype=dtype) if initial_state is None else initial_state.to(dtype)
    q, k, v = (_cut(x, chunk, dtype) for x in (q, k, v))  # [B, H, N, c, K | V]
    if log_decay is None:
        decay = q.new_zeros(B, H, q.shape[2], chunk, 1)
    else:
        # Sums over a chunk, whose differences matter: in float64 where it is one number a token.
        wide = torch.float64 if log_decay.shape[-1] == 1 else dtype
        decay = _cut(bounded_log_gates(log_decay), chunk, wide)
    total = decay.cumsum(-2)
    from_start, to_end = total.to(dtype).exp(), (total[..., -1:, :] - total).to(dtype).exp()
    through = total[..., -1, :, None].to(dtype).exp()  # [B, H, N, K | 1, 1]

    y = _pairs(q, k, total, total, diagonal=0) @ v
    reads = q * from_start
    if a is not None and b is not None:
        a, b = (_cut(x, chunk, dtype) for x in (a, b))
        before = total - decay
        system = torch.eye(chunk, dtype=dtype, device=q.device) - _pairs(a, b, before, total, diagonal=-1)
        right_side = torch.cat([a * before.to(dtype).exp(), _pairs(a, k, before, total, diagonal=-1) @ v], dim=-1)
        from_state, from_values = torch.linalg.solve_triangular(
            system, right_side, upper=False, unitriangular=True
        ).split((K, V), dim=-1)
        corrections, b = _pairs(q, b, total, total, diagonal=0), b * to_end
    k = k * to_end

    outputs = []
    for n in range(y.shape[2]):
        output = y[:, :, n] + reads[:, :, n] @ state
        update = k[:, :, n].mT @ v[:, :, n]
        if b is not None:
            u = from_state[:, :, n] @ state + from_values[:, :, n]
            output = output + corrections[:, :, n] @ u
            update = update + b[:, :, n].mT @ u
        outputs.append(output)
        state = through[:, :, n] * state + update
    y = torch.stack(outputs, dim=2).flatten(2, 3)[:, :, :T].transpose(1, 2)
    return y.to(given_dtype), state


def linear_recurrence_flops(
    seq_len: int, *, key_dim: int, value_dim: int, delta: bool, vector_decay: bool, causal: bool = True
) -> float:
    """Forward FLOPs of one head over ``seq_len`` tokens in chunks, 2 per multiply-add.

    Args:
        delta: with the rank-one correction, whose triangular systems are included.
        vector_decay: one decay a channel, hence the smaller chunk.
        causal: count pairs on and below the diagonal, and a last partial chunk as long as it is; otherwise full squares
            and whole chunks, as executed.
    """
    chunk = min(default_chunk(vector_decay=vector_decay), seq_len)
    whole, last = divmod(seq_len, chunk)
    lengths = [(whole, chunk), (1, last)] if causal else [(-(-seq_len // chunk), chunk)]
    products, triangles = (4, 3) if delta else (2, 1)
    flops = 0.0
    for count, c in lengths:
        pairs = c * (c + 1) / 2 if causal else c * c
        matrices = (4 if delta else 1) * key_dim + triangles * value_dim
        solve = c * (c - 1) * (key_dim + value_dim) if delta else 0.0
        flops += count * (2.0 * pairs * matrices + products * 2.0 * c * key_dim * value_dim + solve)
    return flops


def default_chunk(*, vector_decay: bool) -> int:
    """Tokens a chunk."""
    return VECTOR_DECAY_CHUNK if vector_decay else SCALAR_DECAY_CHUNK


def _pairs(left: Tensor, right: Tensor, reached: Tensor, left_at: Tensor, *, diagonal: int) -> Tensor:
    """``left_i · (exp(reached_i - left_at_j) right_j)`` for j up to ``i + diagonal`` inside chunks: ``[..., c, c]``."""
    c = left.shape[-2]
    later = torch.ones(c, c, dtype=torch.bool, device=left.device).triu(diagonal + 1)
    between = reached[..., :, None, :] - left_at[..., None, :, :]  # [..., c, c, K | 1]
    decay = between.masked_fill(later[..., None], float("-inf")).to(left.dtype).exp()
    if decay.shape[-1] == 1:
        return left @ right.mT * decay[..., 0]
    return ((decay * right[..., None, :, :]) @ left[..., None])[..., 0]


def _cut(x: Tensor, chunk: int, dtype: torch.dtype) -> Tensor:
    """``[B, T, H, C]`` to chunks ``[B, H, N, c, C]``; zeros fill the last one, and change neither output nor state."""
    x = F.pad(x, (0, 0, 0, 0, 0, -x.shape[1] % chunk))
    return x.to(dtype).unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4)
