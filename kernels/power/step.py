"""Triton kernel of one decoding step: the state is read and written once, whatever the length of the context."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from icl_eval.kernels.power.compiled import RUN_TIME_SIZES, ceil_div, next_power_of_2, run_kernel
from icl_eval.kernels.power.embedding import expanded_dim, multi_indices
from icl_eval.kernels.power.gates import CLOSED_LOG_GATE
from icl_eval.kernels.power.operators import define_operator
from icl_eval.kernels.power.reference import State

PROGRAMS = 512
"""Programs wanted at least, to fill a large GPU: small batches split the rows of a head's state among several."""
ROWS = 32
STAGES = tl.constexpr(4)
"""Tiles of ROWS rows of the state on their way from memory at a time."""


@triton.jit
def _features(x_ptr, index_ptr, weight_ptr, rows, inside, FEATURES: tl.constexpr, DEGREE: tl.constexpr):
    """φ(x) at the given rows, float32."""
    phi = tl.load(weight_ptr + rows, inside, 0.0)
    for factor in tl.static_range(DEGREE):
        phi *= tl.load(x_ptr + tl.load(index_ptr + factor * FEATURES + rows, inside, 0)).to(tl.float32)
    return phi


@triton.jit
def _store_output(address, y, row_sum, scale, mask, NORMALIZED: tl.constexpr):
    if NORMALIZED:
        y = tl.where(row_sum == 0.0, 0.0, y / tl.where(row_sum == 0.0, 1.0, row_sum))
    else:
        y *= scale
    tl.store(address, y.to(address.dtype.element_ty), mask)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def step_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    log_g_ptr,
    state_ptr,
    z_ptr,
    index_ptr,
    weight_ptr,
    new_state_ptr,
    new_z_ptr,
    part_ptr,
    part_sum_ptr,
    y_ptr,
    heads,
    rows_per_program,
    scale,
    D: tl.constexpr,
    V: tl.constexpr,
    FEATURES: tl.constexpr,
    DEGREE: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    NORMALIZED: tl.constexpr,
    HAS_STATE: tl.constexpr,
    WHOLE: tl.constexpr,
    CLOSED: tl.constexpr,
    BV: tl.constexpr,
    ROWS: tl.constexpr,
):
    """S' = γ S + φ(k) vᵀ for some rows of one key-value head, and their part of φ(q)·S' for its query heads, or, where
    a program has the WHOLE head, the output y [B·H, V] itself.

    All contiguous: q [B·H, D], k [B·Hk, D], v [B·Hk, V], S [B·Hk, FEATURES, V], z [B·Hk, FEATURES]; parts
    [programs, B·H, V] and [programs, B·H]. Grid (programs per head, B·Hk).
    """
    head = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * rows_per_program
    column = tl.arange(0, BV)
    v = tl.load(v_ptr + head * V + column, column < V, 0.0).to(tl.float32)
    gate = 1.0
    if GATED:
        gate = tl.exp(tl.maximum(tl.load(log_g_ptr + head).to(tl.float32), CLOSED))
    for g in tl.static_range(GROUPS):
        query_head = head * GROUPS + g
        y = tl.zeros((ROWS, BV), tl.float32)
        row_sum = tl.zeros((ROWS,), tl.float32)
        for start in tl.range(first, tl.minimum(first + rows_per_program, FEATURES), ROWS, num_stages=STAGES):
            rows = start + tl.arange(0, ROWS)
            inside = rows < FEATURES
            cell = (head * FEATURES + rows)[:, None] * V + column[None, :]
            mask = inside[:, None] & (column < V)[None, :]
            phi_k = _features(k_ptr + head * D, index_ptr, weight_ptr, rows, inside, FEATURES, DEGREE)
            state = phi_k[:, None] * v[None, :]
            if HAS_STATE:
                state += gate * tl.load(state_ptr + cell, mask, 0.0)
            phi_q = _features(q_ptr + query_head * D, index_ptr, weight_ptr, rows, inside, FEATURES, DEGREE)
            y += phi_q[:, None] * state
            if NORMALIZED:
                z = phi_k
                if HAS_STATE:
                    z += gate * tl.load(z_ptr + head * FEATURES + rows, inside, 0.0)
                row_sum += phi_q * z
            if g == 0:
                tl.store(new_state_ptr + cell, state, mask)
                if NORMALIZED:
                    tl.store(new_z_ptr + head * FEATURES + rows, z, inside)
        if WHOLE:
            _store_output(
                y_ptr + query_head * V + column, tl.sum(y, 0), tl.sum(row_sum, 0), scale, column < V, NORMALIZED
            )
        else:
            part = tl.program_id(0) * heads + query_head
            tl.store(part_ptr + part * V + column, tl.sum(y, 0), column < V)
            if NORMALIZED:
                tl.store(part_sum_ptr + part, tl.sum(row_sum, 0))


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def combine_kernel(
    part_ptr, part_sum_ptr, y_ptr, heads, programs, scale, V: tl.constexpr, NORMALIZED: tl.constexpr, BV: tl.constexpr
):
    """Sums the parts of each query head and normalises. Grid (B·H,)."""
    head = tl.program_id(0)
    column = tl.arange(0, BV)
    y = tl.zeros((BV,), tl.float32)
    row_sum = 0.0
    for program in range(programs):
        part = program * heads + head
        y += tl.load(part_ptr + part * V + column, column < V, 0.0)
        if NORMALIZED:
            row_sum += tl.load(part_sum_ptr + part)
    _store_output(y_ptr + head * V + column, y, row_sum, scale, column < V, NORMALIZED)


def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_g: Tensor | None,
    state: Tensor | None,
    normalizer: Tensor | None,
    degree: int,
    scale: float,
    normalized: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output and the new state and normaliser (empty without one)."""
    (B, H, D), (Hk, V) = q.shape, v.shape[1:]
    index, weight = _index_tables(D, degree, q.device)
    features = len(weight)
    y, new_state, new_normalizer = _outputs(q, v, features, normalized)
    programs = min(ceil_div(features, ROWS), ceil_div(PROGRAMS, B * Hk))
    rows_per_program = ceil_div(ceil_div(features, programs), ROWS) * ROWS
    programs = ceil_div(features, rows_per_program)
    whole = programs == 1
    part = y if whole else torch.empty(programs, B * H, V, device=q.device)
    part_sum = y if whole else torch.empty(programs, B * H, device=q.device)
    run_kernel(
        step_kernel,
        (programs, B * Hk),
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        part if log_g is None else log_g.contiguous(),
        part if state is None else state.contiguous(),
        part if normalizer is None else normalizer.contiguous(),
        index,
        weight,
        new_state,
        new_normalizer,
        part,
        part_sum,
        y,
        B * H,
        rows_per_program,
        scale**degree,
        D=D,
        V=V,
        FEATURES=features,
        DEGREE=degree,
        GROUPS=H // Hk,
        GATED=log_g is not None,
        NORMALIZED=normalized,
        HAS_STATE=state is not None,
        WHOLE=whole,
        CLOSED=CLOSED_LOG_GATE,
        BV=next_power_of_2(V),
        ROWS=ROWS,
    )
    if not whole:
        run_kernel(
            combine_kernel,
            (B * H,),
            part,
            part_sum,
            y,
            B * H,
            programs,
            scale**degree,
            V=V,
            NORMALIZED=normalized,
            BV=next_power_of_2(V),
            num_warps=1,
        )
    return y, new_state, new_normalizer


def _step_fake(q, k, v, log_g, state, normalizer, degree, scale, normalized):
    return _outputs(q, v, expanded_dim(q.shape[-1], degree), normalized)


_operator = define_operator("power_attention_step", _step, _step_fake)


def _outputs(q: Tensor, v: Tensor, features: int, normalized: bool) -> tuple[Tensor, Tensor, Tensor]:
    (B, H, _), (Hk, V) = q.shape, v.shape[1:]
    normalizer = (B, Hk, features) if normalized else (0,)
    return (
        torch.empty(B, H, V, dtype=q.dtype, device=q.device),
        torch.empty(B, Hk, features, V, dtype=torch.float32, device=q.device),
        torch.empty(normalizer, dtype=torch.float32, device=q.device),
    )


_tables: dict[tuple[int, int, torch.device], tuple[Tensor, Tensor]] = {}


def _index_tables(head_dim: int, degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The element indices [degree, D_spow] (int32) and weights [D_spow] (float32) of the features."""
    key = (head_dim, degree, device)
    if key not in _tables:
        index, weight = multi_indices(head_dim, degree, "spow", 1, device)
        _tables[key] = (torch.stack(index).int().contiguous(), weight.float().contiguous())
    return _tables[key]


def fused_step(
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
    """One token; arguments are checked by the caller. It has no gradients."""
    matrix, normalizer = state if state is not None else (None, None)
    normalized = normalization == "row_sum"
    y, new_matrix, new_normalizer = _operator(q, k, v, log_g, matrix, normalizer, degree, scale, normalized)
    return y, (new_matrix, new_normalizer if normalized else None)
