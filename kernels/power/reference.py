"""Power attention in its quadratic form, as written in the paper: the oracle the other backends are tested against.

It computes in the dtype of its inputs, so float64 inputs give a float64 oracle and bfloat16 inputs show what the format
alone costs. Memory is quadratic in T: for tests and short sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from icl_eval.kernels.power.embedding import power_embedding
from icl_eval.kernels.power.gates import bounded_log_gates, safe_divide

State = tuple[Tensor, Tensor | None]


def reference_power_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    *,
    degree: int,
    scale: float,
    normalization: str,
    initial_state: State | None,
    return_state: bool,
) -> tuple[Tensor, State | None]:
    """Output [B, T, H, V] in q's dtype and, if asked for, the final state (float32, or float64 for float64 inputs)."""
    groups = q.shape[2] // k.shape[2]
    kept = _running_log_gates(k, log_g)
    between = kept[:, :, None, :] - kept[:, None, :, :]  # [B, i, j, Hk]: log of the gates in j+1..i
    causal = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool, device=q.device).tril()
    decay = between.masked_fill(~causal[:, :, None], float("-inf")).exp().to(q.dtype)

    k_heads, v_heads, decay_heads = (x.repeat_interleave(groups, dim=-2) for x in (k, v, decay[..., None]))
    weights = (scale * torch.einsum("bihd,bjhd->bijh", q, k_heads)) ** degree * decay_heads[..., 0]
    y = torch.einsum("bijh,bjhv->bihv", weights, v_heads)
    row_sum = weights.sum(dim=2)

    if initial_state is not None:
        state, normalizer = initial_state
        phi_q = power_embedding(scale * q, degree) * kept.exp().to(q.dtype).repeat_interleave(groups, dim=-1)[..., None]
        y = y + torch.einsum("bihn,bhnv->bihv", phi_q, state.to(q.dtype).repeat_interleave(groups, dim=1))
        if normalizer is not None:
            row_sum = row_sum + torch.einsum(
                "bihn,bhn->bih", phi_q, normalizer.to(q.dtype).repeat_interleave(groups, 1)
            )
    if normalization == "row_sum":
        y = safe_divide(y, row_sum[..., None])
    if not return_state:
        return y, None

    phi_k = power_embedding(k, degree) * (kept[:, -1:] - kept).exp().to(k.dtype)[..., None]
    state_dtype = torch.promote_types(q.dtype, torch.float32)
    final = torch.einsum("bjhn,bjhv->bhnv", phi_k, v).to(state_dtype)
    final_normalizer = phi_k.sum(dim=1).to(state_dtype) if normalization == "row_sum" else None
    if initial_state is not None:
        carried = kept[:, -1].exp().to(state_dtype)[..., None]
        final = final + carried[..., None] * initial_state[0]
        if final_normalizer is not None and initial_state[1] is not None:
            final_normalizer = final_normalizer + carried * initial_state[1]
    return y, (final, final_normalizer)


def _running_log_gates(k: Tensor, log_g: Tensor | None) -> Tensor:
    """Sum of the log gates up to each token, [B, T, Hk] in float64, so that differences of long sums stay exact."""
    if log_g is None:
        return k.new_zeros(k.shape[:3], dtype=torch.float64)
    return bounded_log_gates(log_g).double().cumsum(dim=1)
