"""Power attention on the GPU: the Triton kernels put together, as torch operators with gradients.

Both directions are registered with ``torch.library`` (fake kernels, autograd, FLOP formulas), so they work under
``torch.compile``, activation checkpointing and CUDA graphs. float16 inputs are computed in float32 storage with tf32
products, whose mantissa is as long and whose range holds the states.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from icl_eval.kernels.power import launch
from icl_eval.kernels.power.canonical import to_canonical_order, to_kernel_order
from icl_eval.kernels.power.cost import flops_by_operation
from icl_eval.kernels.power.embedding import expanded_dim
from icl_eval.kernels.power.launch import Call, call_of
from icl_eval.kernels.power.operators import define_operator
from icl_eval.kernels.power.reference import State

STATE_DEGREES = (1, 2)
"""Degrees whose states the kernels build; above, they compute attention alone."""
MAX_DEGREE = 4
MAX_DIM = 128


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
    q, k = (_padded(x, launch.kernel_dim(D)) for x in (q, k))
    v = _padded(v, launch.kernel_dim(V))
    matrix, normalizer = initial_state if initial_state is not None else (None, None)
    normalized = normalization == "row_sum"
    keep_low = (
        normalized and log_g is not None and log_g.requires_grad and torch.is_grad_enabled() and dtype != torch.float32
    )
    y, *_, final, final_normalizer = _operator(
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
        state = (_trimmed(final, V), final_normalizer if normalized else None)
    return _trimmed(y, V).to(dtype), state


def _forward(
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
    c = call_of(q, k, v, log_g, head_dim, degree, normalized, precision, chunk_size)
    q, k, v = (launch.unit_stride(x) for x in (q, k, v))
    y = torch.empty(c.B, c.T, c.H, c.V, dtype=q.dtype, device=q.device)
    y_low = torch.empty_like(y) if keep_low else y.new_empty(0)
    row_sum, states, normalizers, final, final_normalizer = _saved(c, initial is not None, return_state)
    gates = launch.running_gates(log_g, c, q)
    n_updates = c.n_chunks if return_state else c.n_chunks - 1
    qt = launch.transposed(q, c, "forward") if states.numel() and degree > 1 and not c.on_hopper("forward") else q
    if n_updates:
        kt = launch.transposed(k, c, "update_state") if degree > 1 else k
        launch.update_states(k, kt, v, gates.to_end, states[:, 1 : 1 + n_updates], c, groups=1)
    if states.numel():
        start = None if initial is None else to_kernel_order(initial, *c.canonical)
        kernel_final = launch.discumsum(states, gates.high, start, c, n_updates, return_state)
        if return_state:
            final = to_canonical_order(kernel_final.view(c.B, c.Hk, c.rows, c.V), *c.canonical)
    if normalizers.numel():
        if n_updates:
            launch.update_normalizers(k, kt, None, gates.to_end, normalizers[:, 1 : 1 + n_updates], c, groups=1)
        start = None
        if initial_normalizer is not None:
            start = to_kernel_order(initial_normalizer[..., None], c.head_dim, c.D, c.D, degree)
        kernel_final = launch.discumsum(normalizers, gates.high, start, c, n_updates, return_state)
        if return_state:
            whole = kernel_final.view(c.B, c.Hk, c.D**2, 1)
            final_normalizer = to_canonical_order(whole, c.head_dim, c.D, c.D, degree)[..., 0]
    launch.forward(
        q,
        k,
        v,
        qt,
        gates,
        states,
        normalizers,
        y,
        y_low,
        row_sum,
        c,
        has_initial=initial is not None,
        output_scale=scale**degree,
    )
    return y, y_low, row_sum, states, normalizers, final, final_normalizer


def _forward_fake(  # type: ignore[no-untyped-def]
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
    c = call_of(q, k, v, log_g, head_dim, degree, normalized, precision, chunk_size)
    y = q.new_empty(c.B, c.T, c.H, c.V)
    y_low = torch.empty_like(y) if keep_low else y.new_empty(0)
    return y, y_low, *_saved(c, initial is not None, return_state)


def _saved(c: Call, has_initial: bool, return_state: bool) -> tuple[Tensor, ...]:
    """Buffers for the row sums, the states and their normalisers, the final state and the final normaliser."""
    stateful = c.n_chunks > 1 or has_initial or return_state
    features = expanded_dim(c.head_dim, c.degree)

    def buffer(wanted: bool, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return c.empty(*(shape if wanted else (0,)), dtype=dtype)

    return (
        buffer(c.normalized, c.B * c.H, c.padded),
        buffer(stateful, c.B * c.Hk, c.n_chunks + 1, c.rows, c.V, dtype=c.dtype),
        buffer(stateful and c.normalized, c.B * c.Hk, c.n_chunks + 1, c.D, c.D),
        buffer(return_state, c.B, c.Hk, features, c.V),
        buffer(return_state and c.normalized, c.B, c.Hk, features),
    )


def _backward(
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
    c = call_of(q, k, v, log_g, head_dim, degree, normalized, precision, chunk_size)
    q, k, v, dy = (launch.unit_stride(x) for x in (q, k, v, dy))
    has_final = dfinal is not None or dfinal_normalizer is not None
    gates = launch.running_gates(log_g, c, q)
    dq, dk, dv, dlog_g, dinitial, dinitial_normalizer = _gradients(q, k, v, log_g, c, has_initial)
    do = torch.empty_like(y)
    dn = c.empty(c.B * c.H, c.padded) if normalized else row_sum
    launch.output_gradient(dy, y, y_low, row_sum, do, dn, c, scale**degree)

    qt = kt = q
    dstates = dnormalizers = states
    across = torch.zeros(c.B * c.Hk, c.n_chunks, device=q.device)
    if states.numel():
        if degree > 1:
            qt = launch.transposed(q, c, "update_state")
            if not c.on_hopper("key_value_gradient"):
                kt = launch.transposed(k, c, "key_value_gradient")
        dstates = c.empty(c.B * c.Hk, c.n_chunks, c.rows, c.V, dtype=c.dtype)
        launch.update_states(q, qt, do, gates.from_start, dstates, c, groups=c.groups)
        last = None
        if has_final:
            zero = torch.zeros(c.B, c.Hk, expanded_dim(head_dim, degree), c.V, device=q.device)
            last = to_kernel_order(zero if dfinal is None else dfinal, *c.canonical)
        first = launch.reverse_discumsum(dstates, gates.high, last, c, has_initial)
        if c.gated:
            launch.inner_products(
                states, dstates, gates.high, across, c, columns=c.V, split=c.split, has_initial=has_initial,
                has_final=has_final,
            )  # fmt: skip
        if has_initial:
            dinitial = to_canonical_order(first.view(c.B, c.Hk, c.rows, c.V), *c.canonical)
    if normalizers.numel():
        dnormalizers = c.empty(c.B * c.Hk, c.n_chunks, c.D, c.D)
        launch.update_normalizers(q, qt, dn, gates.from_start, dnormalizers, c, groups=c.groups)
        last = None
        if has_final:
            zero = torch.zeros(c.B, c.Hk, expanded_dim(head_dim, degree), device=q.device)
            given = zero if dfinal_normalizer is None else dfinal_normalizer
            last = to_kernel_order(given[..., None], c.head_dim, c.D, c.D, degree)
        first = launch.reverse_discumsum(dnormalizers, gates.high, last, c, has_initial)
        if c.gated:
            launch.inner_products(
                normalizers, dnormalizers, gates.high, across, c, columns=1, split=c.D, has_initial=has_initial,
                has_final=has_final,
            )  # fmt: skip
        if has_initial:
            whole = first.view(c.B, c.Hk, c.D**2, 1)
            dinitial_normalizer = to_canonical_order(whole, c.head_dim, c.D, c.D, degree)[..., 0]

    query_share = c.empty(c.B * c.H if c.gated else 0, c.padded)
    key_share, later_share = c.empty(2, c.B * c.Hk if c.gated else 0, c.padded).unbind()
    launch.query_gradient(q, k, v, qt, do, dn, gates, states, normalizers, dq, query_share, c, has_initial=has_initial)
    launch.key_value_gradient(
        q, k, v, kt, do, dn, gates, dstates, dnormalizers, dk, dv, key_share, later_share, c, has_final=has_final
    )
    if log_g is not None:
        launch.gate_gradient(key_share, later_share, query_share, across, log_g, dlog_g, c)
    return dq, dk, dv, dlog_g, dinitial, dinitial_normalizer


def _backward_fake(  # type: ignore[no-untyped-def]
    dy, dfinal, dfinal_normalizer, q, k, v, log_g, y, y_low, row_sum, states, normalizers, has_initial, head_dim,
    degree, scale, normalized, precision, chunk_size,
):  # fmt: skip
    c = call_of(q, k, v, log_g, head_dim, degree, normalized, precision, chunk_size)
    return _gradients(q, k, v, log_g, c, has_initial)


def _gradients(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, c: Call, has_initial: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def contiguous(x: Tensor) -> Tensor:
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)

    features = expanded_dim(c.head_dim, c.degree)
    gates = q.new_empty(0) if log_g is None else torch.empty(log_g.shape, dtype=log_g.dtype, device=q.device)
    initial = (c.B, c.Hk, features, c.V) if has_initial else (0,)
    normalizer = (c.B, c.Hk, features) if has_initial and c.normalized else (0,)
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


def _differentiate(ctx, dy, _y_low, _row_sum, _states, _normalizers, dfinal, dfinal_normalizer):  # type: ignore[no-untyped-def]
    q, k, v, log_g, y, y_low, row_sum, states, normalizers = ctx.saved_tensors
    dq, dk, dv, dlog_g, dinitial, dnormalizer = _backward_operator(
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


_backward_operator = define_operator("power_attention_backward", _backward, _backward_fake)
_operator = define_operator(
    "power_attention", _forward, _forward_fake, setup_context=_setup_context, differentiate=_differentiate
)


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


def _padded(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else F.pad(x, (0, size - x.shape[-1]))


def _trimmed(x: Tensor, size: int) -> Tensor:
    return x if x.shape[-1] == size else x[..., :size]
