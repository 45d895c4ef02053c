"""Power attention in its recurrent form: one token, constant state."""

from __future__ import annotations

import torch
from torch import Tensor

from icl_eval.kernels.power.embedding import power_embedding
from icl_eval.kernels.power.gates import bounded_log_gates, safe_divide
from icl_eval.kernels.power.reference import State


def recurrent_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    state: State | None,
    *,
    degree: int,
    scale: float,
    normalization: str,
) -> tuple[Tensor, State]:
    """One token in plain torch, computed in the state's dtype: float32, or float64 for float64 inputs."""
    (B, H, _), Hk = q.shape, k.shape[1]
    dtype = torch.promote_types(q.dtype, torch.float32)
    phi_k = power_embedding(k.to(dtype), degree)
    matrix = phi_k[..., :, None] * v.to(dtype)[..., None, :]
    normalizer = phi_k if normalization == "row_sum" else None
    if state is not None:
        gate = bounded_log_gates(log_g).to(dtype).exp() if log_g is not None else k.new_ones(B, Hk, dtype=dtype)
        matrix = state[0] * gate[..., None, None] + matrix
        if normalizer is not None and state[1] is not None:
            normalizer = state[1] * gate[..., None] + normalizer

    phi_q = power_embedding(q.to(dtype) * scale, degree).unflatten(1, (Hk, H // Hk))
    y = phi_q @ matrix
    if normalizer is not None:
        y = safe_divide(y, phi_q @ normalizer[..., None])
    return y.flatten(1, 2).to(q.dtype), (matrix, normalizer)
