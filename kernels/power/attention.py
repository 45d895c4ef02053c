"""The public operators: arguments are checked here, once, and the work is handed to a backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from icl_eval.kernels.power.backends import triton_problem, works
from icl_eval.kernels.power.chunked import chunked_power_attention
from icl_eval.kernels.power.cost import default_chunk_size
from icl_eval.kernels.power.decode import recurrent_step
from icl_eval.kernels.power.embedding import check_choice, expanded_dim
from icl_eval.kernels.power.reference import State, reference_power_attention

NORMALIZATIONS = ("row_sum", "none")
BACKENDS = ("auto", "reference", "chunked", "triton")
ATTENTION_FORM_CHUNKS = 4
"""Sequences up to so many default chunks are faster as one chunk, plain attention, in the Triton kernels."""
MIN_STATE_CHUNK = 512
"""Tokens per chunk below which writing and reading the states of degree 2 outweighs what the Triton kernels save."""


def power_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None = None,
    *,
    degree: int = 2,
    scale: float | None = None,
    normalization: str = "row_sum",
    chunk_size: int | None = None,
    initial_state: State | None = None,
    return_state: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, State]:
    """Causal power attention (arXiv 2507.04239): token i weighs token j ≤ i by ``(scale q_i·k_j)^degree`` and the gates
    in j+1..i, and returns the weighted mean of the values.

    Splitting a sequence anywhere, handing the state on, gives the same outputs up to rounding.

    Args:
        q: queries [B, T, H, D]; any T ≥ 1.
        k: keys [B, T, Hk, D]; H must be a multiple of Hk, and query head h uses key-value head ``h // (H // Hk)``.
        v: values [B, T, Hk, V].
        log_g: log of the gates, ≤ 0, [B, T, Hk], float32 or wider; -inf closes a gate. None: all gates open.
        degree: the power p ≥ 1.
        scale: factor on q·k; 1/sqrt(D) if None. It cancels under ``"row_sum"``.
        normalization: ``"row_sum"`` divides by the sum of the weights, for even degrees, whose weights are not
            negative; a row whose weights sum to zero gives 0 with zero gradients. ``"none"`` leaves the weighted sum.
        chunk_size: tokens per chunk; :func:`default_chunk_size` if None. The Triton kernels round it up to 128; left
            to choose, they take at least 512 at degree 2, and sequences of up to four chunks as plain attention.
        initial_state: state before the first token; None is empty.
        return_state: also return the state after the last token.
        backend: ``"reference"`` (quadratic oracle), ``"chunked"`` (plain torch, linear cost), ``"triton"`` (GPU
            kernels; above degree 2 without states, as attention) or ``"auto"``: triton where it works, else chunked.

    Returns:
        y [B, T, H, V] in q's dtype, or ``(y, (S, z))``: the state S [B, Hk, D_spow, V] and normaliser z
        [B, Hk, D_spow] (None without row-sum normalisation), in ``spow`` order with its square-root weights and without
        the scale; float32, or float64 for float64 inputs.

    Raises:
        ValueError: an argument out of range, or shapes that do not fit together.
    """
    check_choice("backend", backend, BACKENDS)
    _check_options(degree, normalization)
    _check_tensors(q, k, v, log_g, leading=("B", "T"))
    _check_state(initial_state, q, k, v, degree, normalization)
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be an integer of at least 1 token, got {chunk_size!r}")

    scale = q.shape[-1] ** -0.5 if scale is None else scale
    stateful = initial_state is not None or return_state
    options: dict[str, Any] = {
        "degree": degree,
        "scale": scale,
        "normalization": normalization,
        "initial_state": initial_state,
        "return_state": return_state,
    }
    if _use_triton(backend, q, v, log_g, degree, normalization, stateful):
        from icl_eval.kernels.power.fused import fused_power_attention

        options["chunk_size"] = _kernel_chunk_size(chunk_size, q, v, degree, stateful)
        y, state = fused_power_attention(q, k, v, log_g, **options)
    else:
        function: Callable[..., Any] = reference_power_attention
        if backend != "reference":
            if degree > 2:
                _check_memory(q, k, v, degree, chunk_size, stateful)
            options["chunk_size"] = chunk_size or default_chunk_size(q.shape[-1], v.shape[-1], degree)
            function = chunked_power_attention
        with torch.autocast(q.device.type, enabled=False):
            y, state = function(q, k, v, log_g, **options)
    if not return_state:
        return y
    assert state is not None
    return y, state


def power_attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    state: State | None,
    *,
    degree: int = 2,
    scale: float | None = None,
    normalization: str = "row_sum",
) -> tuple[Tensor, State]:
    """One token of :func:`power_attention` in the recurrent form: the same output, at a cost that does not grow.

    Args:
        q: query [B, H, D]. k: key [B, Hk, D]. v: value [B, Hk, V].
        log_g: log of the gate [B, Hk], or None for an open one.
        state: as returned by :func:`power_attention` or by the step before; None is empty.

    Returns:
        y [B, H, V] in q's dtype, and the state after the token.

    Raises:
        ValueError: as :func:`power_attention`.
    """
    _check_options(degree, normalization)
    _check_tensors(q, k, v, log_g, leading=("B",))
    _check_state(state, q, k, v, degree, normalization)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    given = [q, k, v, log_g, *(state or ())]
    differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in given)
    if q.is_cuda and not differentiated and triton_problem(q, v, degree) is None:
        from icl_eval.kernels.power.step import fused_step

        return fused_step(q, k, v, log_g, state, degree=degree, scale=scale, normalization=normalization)
    with torch.autocast(q.device.type, enabled=False):
        return recurrent_step(q, k, v, log_g, state, degree=degree, scale=scale, normalization=normalization)


def _use_triton(
    backend: str, q: Tensor, v: Tensor, log_g: Tensor | None, degree: int, normalization: str, stateful: bool
) -> bool:
    if backend not in ("auto", "triton"):
        return False
    if backend == "auto" and not q.is_cuda:
        return False
    problem = triton_problem(q, v, degree)
    if problem is None and stateful and degree > 2:
        problem = f"above degree 2 the kernels compute attention alone, without states, got degree {degree}"
    if backend == "triton":
        if problem:
            raise ValueError(f"backend='triton' cannot be used: {problem}; use backend='chunked'")
        return True
    return problem is None and works(q, v, degree, normalization, log_g is not None)


def _kernel_chunk_size(chunk_size: int | None, q: Tensor, v: Tensor, degree: int, stateful: bool) -> int:
    T = q.shape[1]
    default = default_chunk_size(q.shape[-1], v.shape[-1], degree)
    if degree > 2 or (chunk_size is None and not stateful and ATTENTION_FORM_CHUNKS * default >= T):
        return T
    return chunk_size or (max(default, MIN_STATE_CHUNK) if degree == 2 else default)


def _check_memory(q: Tensor, k: Tensor, v: Tensor, degree: int, chunk_size: int | None, stateful: bool) -> None:
    """Refuses states of high degree that no memory holds, before trying to allocate them."""
    chunk = chunk_size or default_chunk_size(q.shape[-1], v.shape[-1], degree)
    if (not stateful and q.shape[1] <= chunk) or not q.is_cuda:
        return
    state_bytes = 4 * k.shape[0] * k.shape[2] * expanded_dim(q.shape[-1], degree) * (v.shape[-1] + 1)
    free_bytes = torch.cuda.mem_get_info(q.device)[0]
    if state_bytes > free_bytes:
        raise ValueError(
            f"degree {degree} at head_dim {q.shape[-1]} needs a state of {state_bytes / 2**30:.1f} GiB, more than the "
            f"{free_bytes / 2**30:.1f} GiB free on {q.device}; use a smaller degree or head_dim"
        )


def _check_options(degree: int, normalization: str) -> None:
    if not isinstance(degree, int) or degree < 1:
        raise ValueError(f"degree must be an integer of at least 1, got {degree!r}")
    check_choice("normalization", normalization, NORMALIZATIONS)
    if normalization == "row_sum" and degree % 2:
        raise ValueError(
            f"degree must be even with normalization='row_sum', whose weights may not be negative, got {degree}; "
            "use an even degree or normalization='none'"
        )


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, leading: tuple[str, ...]) -> None:
    named = {"q": q, "k": k, "v": v}
    for name, x in named.items():
        if x.dim() != len(leading) + 2:
            raise ValueError(f"{name} must be [{', '.join(leading)}, heads, features], got shape {tuple(x.shape)}")
        if not x.is_floating_point() or x.dtype != q.dtype:
            raise ValueError(f"{name} must have the floating-point dtype of q, {q.dtype}, got {x.dtype}")
        if x.shape[:-2] != q.shape[:-2]:
            raise ValueError(f"{name} must have q's {leading} = {tuple(q.shape[:-2])}, got {tuple(x.shape[:-2])}")
        if not x.numel():
            raise ValueError(f"{name} must not be empty, got shape {tuple(x.shape)}")
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k must have q's head_dim {q.shape[-1]}, got {k.shape[-1]}")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(f"v must have k's {k.shape[-2]} heads, got {v.shape[-2]}")
    if q.shape[-2] % k.shape[-2]:
        raise ValueError(f"q's heads must be a multiple of k's {k.shape[-2]}, got {q.shape[-2]}")
    if log_g is None:
        return
    if log_g.shape != k.shape[:-1]:
        raise ValueError(f"log_g must have shape {tuple(k.shape[:-1])}, got {tuple(log_g.shape)}")
    if log_g.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"log_g must be float32 or float64, got {log_g.dtype}")


def _check_state(state: State | None, q: Tensor, k: Tensor, v: Tensor, degree: int, normalization: str) -> None:
    if state is None:
        return
    if not isinstance(state, tuple) or len(state) != 2:
        raise ValueError(f"the state must be a pair (S, z), got {type(state).__name__}")
    matrix, normalizer = state
    shape = (k.shape[0], k.shape[-2], expanded_dim(q.shape[-1], degree), v.shape[-1])
    dtype = torch.promote_types(q.dtype, torch.float32)
    if matrix.shape != shape or matrix.dtype != dtype:
        raise ValueError(f"the state's S must be {dtype} of shape {shape}, got {matrix.dtype} {tuple(matrix.shape)}")
    if (normalizer is None) != (normalization == "none"):
        raise ValueError(f"the state's z must be {'None' if normalizer is not None else 'given'} with {normalization=}")
    if normalizer is not None and (normalizer.shape != shape[:3] or normalizer.dtype != dtype):
        raise ValueError(f"the state's z must be {dtype} of shape {shape[:3]}, got {tuple(normalizer.shape)}")
