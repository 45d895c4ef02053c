"""Power attention on the GPU: the Triton kernels put together, as torch operators with gradients.

Both directions are registered with ``torch.library`` (fake kernels, autograd, FLOP formulas), so they work under
``torch.compile``, activation checkpointing and CUDA graphs. float16 inputs are computed in float32 storage with tf32
products, whose mantissa is as long and whose range holds the states.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from icl_eval.kernels.power.backward import key_value_gradient_kernel, output_gradient_kernel, query_gradient_kernel
from icl_eval.kernels.power.canonical import to_canonical_order, to_kernel_order
from icl_eval.kernels.power.cost import flops_by_operation
from icl_eval.kernels.power.embedding import expanded_dim
from icl_eval.kernels.power.forward import forward_kernel
from icl_eval.kernels.power.gates import CLOSED_LOG_GATE
from icl_eval.kernels.power.layout import gate_gradient_kernel, running_gates_kernel, transpose_kernel
from icl_eval.kernels.power.reference import State
from icl_eval.kernels.power.tiles import split_of, state_rows
from icl_eval.kernels.power.tuning import settings
from icl_eval.kernels.power.update_state import (
    discumsum_kernel,
    inner_product_kernel,
    reverse_discumsum_kernel,
    update_normalizer_kernel,
    update_state_kernel,
)

STATE_DEGREES = (1, 2)
"""Degrees whose states the kernels build; above, they compute attention alone."""
MAX_DEGREE = 4
MAX_DIM = 128
CHUNK_MULTIPLE = 128
"""Chunks are whole tiles: a chunk size is rounded up to this, which changes no result."""


def fused_power_attention(
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
    """Output [B, T, H, V] in q's dtype and, if asked for, the final float32 state. The caller checks the arguments."""
    D, V, dtype = q.shape[-1], v.shape[-1], q.dtype
    if dtype == torch.float16:
        q, k, v = q.float(), k.float(), v.float()
    q, k = (_padded(x, _kernel_dim(D)) for x in (q, k))
    v = _padded(v, _kernel_dim(V))
    matrix, normalizer = initial_state if initial_state is not None else (None, None)
    normalized = normalization == "row_sum"
    keep_low = (
        normalized and log_g is not None and log_g.requires_grad and torch.is_grad_enabled() and dtype != torch.float32
    )
    y, *_, final, final_normalizer = power_attention_op(
        q,
        k,
        v,
        log_g,
        None if matrix is None else _padded(matrix, v.shape[-1]),
        normalizer,
        D,
        degree,
        scale,
        normalized,
        "tf32" if dtype == torch.float16 else "tf32x3",
        chunk_size,
        return_state,
        keep_low,
    )
    state = None
    if return_state:
        state = (final[..., :V], final_normalizer if normalized else None)
    return y[..., :V].to(dtype), state


class _Sizes(NamedTuple):
    """Sizes of one call, and what derives from them."""

    B: int
    T: int
    H: int
    Hk: int
    D: int
    V: int
    head_dim: int
    degree: int
    chunk: int
    n_chunks: int

    @property
    def padded(self) -> int:
        """Tokens of whole chunks."""
        return self.chunk * self.n_chunks

    @property
    def groups(self) -> int:
        return self.H // self.Hk

    @property
    def split(self) -> int:
        return split_of(self.D)

    @property
    def rows(self) -> int:
        return state_rows(self.D, self.degree)

    @property
    def canonical(self) -> tuple[int, int, int, int]:
        return self.head_dim, self.D, self.split, self.degree


class _Gates(NamedTuple):
    """What :func:`running_gates_kernel` writes; any tensor where there are no gates."""

    high: Tensor
    low: Tensor
    from_start: Tensor
    to_end: Tensor


def _sizes(q: Tensor, k: Tensor, v: Tensor, head_dim: int, degree: int, chunk_size: int) -> _Sizes:
    B, T, H, D = q.shape
    chunk = -(-min(chunk_size, T) // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
    return _Sizes(B, T, H, k.shape[2], D, v.shape[-1], head_dim, degree, chunk, -(-T // chunk))


@torch.library.custom_op("icl_eval::power_attention", mutates_args=())
def power_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    initial: Tensor | None,
    initial_normalizer: Tensor | None,
    head_dim: int,
    degree: int,
    scale: float,
    normalized: bool,
    precision: str,
    chunk_size: int,
    return_state: bool,
    keep_low: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The output, then what the backward pass needs (what rounding cut off the output, row sums, states before each
    chunk, their normalisers), then the final state and normaliser. Tensors that do not apply are empty.
    """
    s = _sizes(q, k, v, head_dim, degree, chunk_size)
    q, k, v = (_unit_stride(x) for x in (q, k, v))
    y = torch.empty(s.B, s.T, s.H, s.V, dtype=q.dtype, device=q.device)
    y_low = torch.empty_like(y) if keep_low else y.new_empty(0)
    row_sum, states, normalizers, final, final_normalizer = _saved(
        q, s, normalized, initial is not None, return_state, torch.empty
    )
    gates = _running_gates(log_g, s, q)
    n_updates = s.n_chunks if return_state else s.n_chunks - 1
    qt = _transposed(q, s) if states.numel() and degree > 1 else q
    if n_updates:
        kt = _transposed(k, s) if degree > 1 else k
        _update_states(k, kt, v, gates.to_end, states[:, 1:], s, n_updates, 1, log_g is not None, precision)
    if states.numel():
        start = None if initial is None else to_kernel_order(initial, *s.canonical)
        kernel_final = _discumsum(
            states, gates.high, start, s, n_updates, s.rows * s.V, log_g is not None, return_state
        )
        if return_state:
            final = to_canonical_order(kernel_final.view(s.B, s.Hk, s.rows, s.V), *s.canonical)
    if normalizers.numel():
        if n_updates:
            _update_normalizers(
                k, kt, None, gates.to_end, normalizers[:, 1:], s, n_updates, 1, log_g is not None, precision
            )
        start = None
        if initial_normalizer is not None:
            start = to_kernel_order(initial_normalizer[..., None], s.head_dim, s.D, s.D, degree)
        kernel_final = _discumsum(normalizers, gates.high, start, s, n_updates, s.D**2, log_g is not None, return_state)
        if return_state:
            whole = kernel_final.view(s.B, s.Hk, s.D**2, 1)
            final_normalizer = to_canonical_order(whole, s.head_dim, s.D, s.D, degree)[..., 0]
    chosen = settings("forward", s.D, s.V, q.dtype, q.device)
    forward_kernel[triton.cdiv(s.T, dict(chosen.tiles)["BM"]), s.B * s.H](
        q,
        k,
        v,
        qt,
        gates.high,
        gates.low,
        states,
        normalizers,
        y,
        y_low,
        row_sum,
        *q.stride()[:3],
        *k.stride()[:3],
        *v.stride()[:3],
        s.H,
        s.T,
        s.padded,
        s.chunk,
        s.n_chunks,
        scale**degree,
        D=s.D,
        V=s.V,
        SPLIT=s.split,
        ROWS=s.rows,
        DEGREE=degree,
        GROUPS=s.groups,
        GATED=log_g is not None,
        NORMALIZED=normalized,
        HAS_INITIAL=initial is not None,
        KEEP_LOW=keep_low,
        PRECISION=precision,
        **chosen.options,
    )
    return y, y_low, row_sum, states, normalizers, final, final_normalizer


@power_attention_op.register_fake
def _(  # type: ignore[no-untyped-def]
    q,
    k,
    v,
    log_g,
    initial,
    initial_normalizer,
    head_dim,
    degree,
    scale,
    normalized,
    precision,
    chunk_size,
    return_state,
    keep_low,
):
    s = _sizes(q, k, v, head_dim, degree, chunk_size)
    y = q.new_empty(s.B, s.T, s.H, s.V)
    y_low = torch.empty_like(y) if keep_low else y.new_empty(0)
    return y, y_low, *_saved(q, s, normalized, initial is not None, return_state, torch.empty)


def _saved(q: Tensor, s: _Sizes, normalized: bool, has_initial: bool, return_state: bool, new):  # type: ignore[no-untyped-def]
    """Buffers for the row sums, the states and their normalisers, the final state and the final normaliser."""
    stateful = s.n_chunks > 1 or has_initial or return_state
    features = expanded_dim(s.head_dim, s.degree)

    def buffer(wanted: bool, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return new(shape if wanted else (0,), dtype=dtype, device=q.device)

    return (
        buffer(normalized, s.B * s.H, s.padded),
        buffer(stateful, s.B * s.Hk, s.n_chunks + 1, s.rows, s.V, dtype=q.dtype),
        buffer(stateful and normalized, s.B * s.Hk, s.n_chunks + 1, s.D, s.D),
        buffer(return_state, s.B, s.Hk, features, s.V),
        buffer(return_state and normalized, s.B, s.Hk, features),
    )


@torch.library.custom_op("icl_eval::power_attention_backward", mutates_args=())
def power_attention_backward_op(
    dy: Tensor,
    dfinal: Tensor | None,
    dfinal_normalizer: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    y: Tensor,
    y_low: Tensor,
    row_sum: Tensor,
    states: Tensor,
    normalizers: Tensor,
    has_initial: bool,
    head_dim: int,
    degree: int,
    scale: float,
    normalized: bool,
    precision: str,
    chunk_size: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, log_g, the initial state and its normaliser; empty where they do not apply."""
    s = _sizes(q, k, v, head_dim, degree, chunk_size)
    q, k, v, dy = (_unit_stride(x) for x in (q, k, v, dy))
    gated, has_final = log_g is not None, dfinal is not None or dfinal_normalizer is not None
    gates = _running_gates(log_g, s, q)
    dq, dk, dv, dlog_g, dinitial, dinitial_normalizer = _gradients(q, k, v, log_g, s, has_initial, normalized)
    do = torch.empty_like(y)
    dn = torch.empty(s.B * s.H, s.padded, dtype=torch.float32, device=q.device) if normalized else row_sum
    output_gradient_kernel[triton.cdiv(s.padded, 64), s.B * s.H](
        dy,
        y,
        y_low,
        row_sum,
        do,
        dn,
        *dy.stride()[:3],
        s.H,
        s.T,
        s.padded,
        scale**degree,
        V=s.V,
        NORMALIZED=normalized,
        HAS_LOW=y_low.numel() > 0,
        BLOCK=64,
    )

    qt = kt = q
    dstates = dnormalizers = states
    carried = torch.zeros(s.B * s.Hk, s.n_chunks, device=q.device)  # ⟨S, dS⟩ after each chunk
    if states.numel():
        if degree > 1:
            qt, kt = _transposed(q, s), _transposed(k, s)
        dstates = torch.empty(s.B * s.Hk, s.n_chunks, s.rows, s.V, dtype=q.dtype, device=q.device)
        _update_states(q, qt, do, gates.from_start, dstates, s, s.n_chunks, s.groups, gated, precision)
        if has_final:
            zero = torch.zeros(s.B, s.Hk, expanded_dim(head_dim, degree), s.V, device=q.device)
            last = to_kernel_order(zero if dfinal is None else dfinal, *s.canonical)
        else:
            last = None
        first = _reverse_discumsum(dstates, gates.high, last, s, s.rows * s.V, gated, has_initial)
        if gated:
            _inner_products(states, dstates, carried, s, s.rows, s.V, s.split, has_final)
        if has_initial:
            dinitial = to_canonical_order(first.view(s.B, s.Hk, s.rows, s.V), *s.canonical)
    if normalizers.numel():
        dnormalizers = torch.empty(s.B * s.Hk, s.n_chunks, s.D, s.D, dtype=torch.float32, device=q.device)
        _update_normalizers(q, qt, dn, gates.from_start, dnormalizers, s, s.n_chunks, s.groups, gated, precision)
        if has_final:
            zero = torch.zeros(s.B, s.Hk, expanded_dim(head_dim, degree), device=q.device)
            given = zero if dfinal_normalizer is None else dfinal_normalizer
            last = to_kernel_order(given[..., None], s.head_dim, s.D, s.D, degree)
        else:
            last = None
        first = _reverse_discumsum(dnormalizers, gates.high, last, s, s.D**2, gated, has_initial)
        if gated:
            _inner_products(normalizers, dnormalizers, carried, s, s.D**2, 1, s.D, has_final)
        if has_initial:
            whole = first.view(s.B, s.Hk, s.D**2, 1)
            dinitial_normalizer = to_canonical_order(whole, s.head_dim, s.D, s.D, degree)[..., 0]

    chosen = settings("query_gradient", s.D, s.V, q.dtype, q.device)
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    shared = {
        "D": s.D,
        "V": s.V,
        "SPLIT": s.split,
        "ROWS": s.rows,
        "DEGREE": degree,
        "GROUPS": s.groups,
        "GATED": gated,
        "NORMALIZED": normalized,
        "PRECISION": precision,
    }
    query_share = torch.empty(s.B * s.H if gated else 0, s.padded, device=q.device)
    key_share = torch.empty(s.B * s.Hk if gated else 0, s.padded, device=q.device)
    query_gradient_kernel[triton.cdiv(s.T, dict(chosen.tiles)["BM"]), s.B * s.H](
        q,
        k,
        v,
        qt,
        do,
        dn,
        gates.high,
        gates.low,
        states,
        normalizers,
        dq,
        query_share,
        *strides,
        s.H,
        s.T,
        s.padded,
        s.chunk,
        s.n_chunks,
        HAS_INITIAL=has_initial,
        **shared,
        **chosen.options,
    )
    chosen = settings("key_value_gradient", s.D, s.V, q.dtype, q.device)
    key_value_gradient_kernel[triton.cdiv(s.T, dict(chosen.tiles)["BK"]), s.B * s.Hk](
        q,
        k,
        v,
        kt,
        do,
        dn,
        gates.high,
        gates.low,
        dstates,
        dnormalizers,
        dk,
        dv,
        key_share,
        *strides,
        s.Hk,
        s.T,
        s.padded,
        s.chunk,
        s.n_chunks,
        HAS_FINAL=has_final,
        **shared,
        **chosen.options,
    )
    if log_g is not None:
        gate_gradient_kernel[s.n_chunks, s.B * s.Hk](
            key_share,
            query_share,
            carried,
            log_g,
            dlog_g,
            *log_g.stride(),
            s.Hk,
            s.T,
            s.padded,
            s.chunk,
            GROUPS=s.groups,
            CLOSED=CLOSED_LOG_GATE,
            BLOCK=CHUNK_MULTIPLE,
        )
    return dq, dk, dv, dlog_g, dinitial, dinitial_normalizer


@power_attention_backward_op.register_fake
def _(  # type: ignore[no-untyped-def]
    dy, dfinal, dfinal_normalizer, q, k, v, log_g, y, y_low, row_sum, states, normalizers, has_initial, head_dim,
    degree, scale, normalized, precision, chunk_size,
):  # fmt: skip
    return _gradients(q, k, v, log_g, _sizes(q, k, v, head_dim, degree, chunk_size), has_initial, normalized)


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, s: _Sizes, has_initial: bool, normalized: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def contiguous(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    features = expanded_dim(s.head_dim, s.degree)
    gates = q.new_empty(0) if log_g is None else torch.empty(log_g.shape, dtype=log_g.dtype, device=q.device)
    initial = (s.B, s.Hk, features, s.V) if has_initial else (0,)
    normalizer = (s.B, s.Hk, features) if has_initial and normalized else (0,)
    return (
        contiguous(q),
        contiguous(k),
        contiguous(v),
        gates,
        torch.empty(initial, dtype=torch.float32, device=q.device),
        torch.empty(normalizer, dtype=torch.float32, device=q.device),
    )


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, log_g, initial, initial_normalizer, *options, _, _ = inputs
    ctx.save_for_backward(q, k, v, log_g, *output[:-2])
    ctx.options = options
    ctx.has_initial, ctx.has_normalizer = initial is not None, initial_normalizer is not None
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, _y_low, _row_sum, _states, _normalizers, dfinal, dfinal_normalizer):  # type: ignore[no-untyped-def]
    q, k, v, log_g, y, y_low, row_sum, states, normalizers = ctx.saved_tensors
    dq, dk, dv, dlog_g, dinitial, dnormalizer = power_attention_backward_op(
        torch.zeros_like(y) if dy is None else dy,
        dfinal,
        dfinal_normalizer,
        q,
        k,
        v,
        log_g,
        y,
        y_low,
        row_sum,
        states,
        normalizers,
        ctx.has_initial,
        *ctx.options,
    )
    return (
        dq,
        dk,
        dv,
        None if log_g is None else dlog_g,
        dinitial if ctx.has_initial else None,
        dnormalizer if ctx.has_normalizer else None,
        *([None] * 8),
    )


power_attention_op.register_autograd(_backward, setup_context=_setup_context)


@register_flop_formula(torch.ops.icl_eval.power_attention)
def _forward_flops(  # type: ignore[no-untyped-def]
    q, k, v, log_g, initial, initial_normalizer, head_dim, degree, scale, normalized, precision, chunk_size,
    return_state, keep_low, **_,
) -> int:  # fmt: skip
    """Of the mathematical state and causal attention, as :func:`icl_eval.kernels.power_attention_flops` counts them."""
    return round(sum(_operation_flops(q, k, v, initial, head_dim, degree, normalized, chunk_size, return_state)))


@register_flop_formula(torch.ops.icl_eval.power_attention_backward)
def _backward_flops(  # type: ignore[no-untyped-def]
    dy, dfinal, dfinal_normalizer, q, k, v, log_g, y, y_low, row_sum, states, normalizers, has_initial, head_dim,
    degree, scale, normalized, precision, chunk_size, **_,
) -> int:  # fmt: skip
    """Attention is five products for the forward's two; each product with a state has two gradients."""
    attention, update, query = _operation_flops(
        q, k, v, has_initial or None, head_dim, degree, normalized, chunk_size, dfinal is not None
    )
    return round(2.5 * attention + 2 * (update + query))


def _operation_flops(  # type: ignore[no-untyped-def]
    q, k, v, initial, head_dim, degree, normalized, chunk_size, return_state
) -> tuple[float, float, float]:
    B, T, H, _ = q
    count = flops_by_operation(
        T,
        head_dim=head_dim,
        value_dim=v[-1],
        degree=degree,
        chunk_size=chunk_size,
        normalization="row_sum" if normalized else "none",
        kv_groups=H // k[2],
        initial_state=initial is not None,
        return_state=return_state,
    )
    return B * H * count.attention, B * H * count.update_state, B * H * count.query_state


def _update_states(
    x: Tensor,
    xt: Tensor,
    v: Tensor,
    gate: Tensor,
    out: Tensor,
    s: _Sizes,
    n_updates: int,
    groups: int,
    gated: bool,
    precision: str,
) -> None:
    chosen = settings("update_state", s.D, s.V, x.dtype, x.device)
    tiles = dict(chosen.tiles)
    if s.degree == 1:
        tiles["COUNT"] = 1
        programs = 1
    else:
        programs = s.split // tiles["COUNT"] + (s.D - s.split) // (2 * tiles["COUNT"])
    update_state_kernel[(programs * n_updates * s.B * s.Hk,)](
        x,
        xt,
        v,
        gate,
        out,
        *x.stride()[:3],
        *v.stride()[:3],
        s.Hk,
        s.T,
        s.padded,
        s.chunk,
        n_updates,
        s.rows * s.V,
        out.stride(0) // (s.rows * s.V),
        D=s.D,
        V=s.V,
        SPLIT=s.split,
        DEGREE=s.degree,
        GROUPS=groups,
        GATED=gated,
        PRECISION=precision,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
        **tiles,
    )


def _update_normalizers(
    x: Tensor,
    xt: Tensor,
    weight: Tensor | None,
    gate: Tensor,
    out: Tensor,
    s: _Sizes,
    n_updates: int,
    groups: int,
    gated: bool,
    precision: str,
) -> None:
    update_normalizer_kernel[n_updates, s.B * s.Hk](
        x,
        xt,
        gate if weight is None else weight,
        gate,
        out,
        *x.stride()[:3],
        s.Hk,
        s.T,
        s.padded,
        s.chunk,
        n_updates,
        out.stride(0) // s.D**2,
        D=s.D,
        GROUPS=groups,
        GATED=gated,
        WEIGHTED=weight is not None,
        PRECISION=precision,
        BT=64 if s.D <= 64 and x.dtype == torch.bfloat16 else 32,
    )


def _discumsum(
    states: Tensor, high: Tensor, start: Tensor | None, s: _Sizes, n_updates: int, size: int, gated: bool, final: bool
) -> Tensor:
    last = torch.empty(s.B * s.Hk, size, device=states.device) if final else high
    block = min(1024, size)
    discumsum_kernel[size // block, s.B * s.Hk](
        states,
        high,
        high if start is None else start,
        last,
        s.padded,
        s.chunk,
        s.n_chunks,
        n_updates,
        SIZE=size,
        GATED=gated,
        HAS_INITIAL=start is not None,
        HAS_FINAL=final,
        BLOCK=block,
    )
    return last


def _reverse_discumsum(
    dstates: Tensor, high: Tensor, last: Tensor | None, s: _Sizes, size: int, gated: bool, has_initial: bool
) -> Tensor:
    """In place; returns the gradient of the state before the first chunk, if there is one."""
    block = min(1024, size)
    first = torch.empty(s.B * s.Hk, size, device=dstates.device) if has_initial else high
    reverse_discumsum_kernel[size // block, s.B * s.Hk](
        dstates,
        high,
        high if last is None else last,
        first,
        s.padded,
        s.chunk,
        s.n_chunks,
        SIZE=size,
        GATED=gated,
        HAS_FINAL=last is not None,
        HAS_INITIAL=has_initial,
        BLOCK=block,
    )
    return first


def _inner_products(
    states: Tensor, dstates: Tensor, out: Tensor, s: _Sizes, rows: int, columns: int, split: int, has_final: bool
) -> None:
    size = rows * columns
    inner_product_kernel[s.n_chunks, s.B * s.Hk](
        states,
        dstates,
        out,
        s.n_chunks,
        SIZE=size,
        V=columns,
        D=s.D,
        SPLIT=s.D if s.degree == 1 else split,
        SKIP_LAST=not has_final,
        BLOCK=min(2048, size & -size),
        num_warps=8,
    )


def _running_gates(log_g: Tensor | None, s: _Sizes, q: Tensor) -> _Gates:
    if log_g is None:
        return _Gates(q, q, q, q)
    gates = _Gates(*torch.empty(4, s.B * s.Hk, s.padded, device=q.device).unbind())
    running_gates_kernel[s.n_chunks, s.B * s.Hk](
        log_g,
        *gates,
        *log_g.stride(),
        s.Hk,
        s.T,
        s.padded,
        s.chunk,
        CLOSED=CLOSED_LOG_GATE,
        BLOCK=CHUNK_MULTIPLE,
    )
    return gates


def _transposed(x: Tensor, s: _Sizes) -> Tensor:
    B, _, H, D = x.shape
    out = torch.empty(B * H, D, s.padded, dtype=torch.float32, device=x.device)
    transpose_kernel[triton.cdiv(s.padded, 64), B * H](x, out, *x.stride()[:3], H, s.T, s.padded, D=D, BLOCK=64)
    return out


def _kernel_dim(dim: int) -> int:
    return max(16, triton.next_power_of_2(dim))


def _padded(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


def _unit_stride(x: Tensor) -> Tensor:
    """Kernels read features as one run of memory, 16 bytes at a time."""
    aligned = (
        x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(n * x.element_size() % 16 == 0 for n in x.stride()[:3])
    )
    return x if aligned else x.contiguous()
