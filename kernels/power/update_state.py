"""Triton kernels of update_state and discumsum: what each chunk adds to the state, and the states chunks start from.

The expansion φ(k) is never stored: for each i, ``S[i, j, :]ᵀ += (Vᵀ · k_i) K[:, j]`` scales a register operand of a
matrix product by one feature. The same kernel, over (Q, dY) and from the chunk's start, gives the gradient of states.
"""

from __future__ import annotations

import triton
import triton.language as tl

from icl_eval.kernels.power.compiled import RUN_TIME_SIZES

SCAN_STAGES = tl.constexpr(6)
"""Chunks whose states are on their way from memory at a time, while a scan adds one up."""


@triton.jit
def _accumulate(
    x_ptr,
    xt_ptr,
    v_ptr,
    gate_ptr,
    out_ptr,
    stride_xt,
    stride_xh,
    stride_vt,
    stride_vh,
    first_head,
    kv_head,
    start,
    end,
    T,
    T_padded,
    i0,
    j0,
    N: tl.constexpr,
    COUNT: tl.constexpr,
    BT: tl.constexpr,
    STAGES: tl.constexpr,
    D: tl.constexpr,
    V: tl.constexpr,
    DEGREE: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """State rows (i, j) for i in i0..i0+COUNT-1 and j in j0..j0+N-1."""
    column = tl.arange(0, V)
    j = j0 + tl.arange(0, N)
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros((V, N), tl.float32),)
    for g in range(GROUPS):
        head = first_head + g
        x_head = x_ptr + head * stride_xh
        v_head = v_ptr + head * stride_vh
        xt_head = xt_ptr + (kv_head * GROUPS + g) * D * T_padded
        for first in tl.range(start, end, BT, num_stages=STAGES):
            t = first + tl.arange(0, BT)
            t64 = t.to(tl.int64)
            v = tl.load(v_head + column[:, None] + t64[None, :] * stride_vt, mask=t[None, :] < T, other=0.0)
            x = tl.load(x_head + t64[:, None] * stride_xt + j[None, :], mask=t[:, None] < T, other=0.0)
            if GATED:
                v = v * tl.load(gate_ptr + kv_head * T_padded + t).to(v.dtype)[None, :]
            scales = ()
            if DEGREE > 1:
                for n in tl.static_range(COUNT):
                    scales = scales + (tl.load(xt_head + (i0 + n) * T_padded + t).to(v.dtype),)
            # Always true. Loads are pipelined while the products, out of the pipeliner's sight, are left in one piece:
            # it would split them in steps that wait for each other.
            if first < end:
                updated = ()
                for n in tl.static_range(COUNT):
                    scaled = v * scales[n][None, :] if DEGREE > 1 else v
                    updated = updated + (tl.dot(scaled, x, sums[n], input_precision=PRECISION),)
                sums = updated
    for n in tl.static_range(COUNT):
        row = n * N + tl.arange(0, N)
        tl.store(out_ptr + row[None, :] * V + column[:, None], sums[n].to(out_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def update_state_kernel(
    x_ptr,
    xt_ptr,
    v_ptr,
    gate_ptr,
    state_ptr,
    stride_xb,
    stride_xt,
    stride_xh,
    stride_vb,
    stride_vt,
    stride_vh,
    Hk,
    T,
    T_padded,
    chunk,
    n_updates,
    stride_state,
    slots,
    D: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    DEGREE: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    PRECISION: tl.constexpr,
    COUNT: tl.constexpr,
    BT: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Local state of each chunk: Σ_t gate · x_i x_j v over its tokens, into slot n of ``state`` [B·Hk, slots, rows, V].

    x [B, T, H', D] with its copy xt [B·H', D, T_padded], v [B, T, H', V], H' = Hk·GROUPS heads summed in groups.
    ``gate`` [B·Hk, T_padded] holds the factors of the gates after t up to the chunk's end (of keys), or of those from
    its start up to t (of queries). Grid (groups of i · n_updates · B·Hk).
    """
    low_groups: tl.constexpr = 1 if DEGREE == 1 else SPLIT // (COUNT)
    high_groups: tl.constexpr = 0 if DEGREE == 1 else (D - SPLIT) // (2 * COUNT)
    group = tl.program_id(0) % (low_groups + high_groups)
    rest = tl.program_id(0) // (low_groups + high_groups)
    n = rest % n_updates
    head = (rest // n_updates).to(tl.int64)
    start = n * chunk
    x_base = x_ptr + head // Hk * stride_xb
    v_base = v_ptr + head // Hk * stride_vb
    first_head = head % Hk * GROUPS
    out = state_ptr + (head * slots + n) * stride_state
    if group < low_groups:
        i0 = group * COUNT
        _accumulate(
            x_base,
            xt_ptr,
            v_base,
            gate_ptr,
            out + i0 * D * V,
            stride_xt,
            stride_xh,
            stride_vt,
            stride_vh,
            first_head,
            head,
            start,
            start + chunk,
            T,
            T_padded,
            i0,
            0,
            D,
            COUNT,
            BT,
            STAGES,
            D,
            V,
            DEGREE,
            GROUPS,
            GATED,
            PRECISION,
        )
    elif high_groups > 0:
        i0 = (group - low_groups) * 2 * COUNT
        _accumulate(
            x_base,
            xt_ptr,
            v_base,
            gate_ptr,
            out + (SPLIT * D + i0 * (D - SPLIT)) * V,
            stride_xt,
            stride_xh,
            stride_vt,
            stride_vh,
            first_head,
            head,
            start,
            start + chunk,
            T,
            T_padded,
            SPLIT + i0,
            SPLIT,
            D - SPLIT,
            2 * COUNT,
            BT,
            STAGES,
            D,
            V,
            DEGREE,
            GROUPS,
            GATED,
            PRECISION,
        )


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def update_normalizer_kernel(
    x_ptr,
    xt_ptr,
    weight_ptr,
    gate_ptr,
    z_ptr,
    stride_xb,
    stride_xt,
    stride_xh,
    Hk,
    T,
    T_padded,
    chunk,
    n_updates,
    slots,
    D: tl.constexpr,
    GROUPS: tl.constexpr,
    GATED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    PRECISION: tl.constexpr,
    BT: tl.constexpr,
):
    """Local normaliser of each chunk for degree 2: Σ_t gate · weight · x xᵀ, into slot n of z [B·Hk, slots, D, D].

    ``weight`` [B·H', T_padded] float32 is the gradient of the row sums in the backward pass. Grid (n_updates, B·Hk).
    """
    n = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    start = n * chunk
    end = start + chunk
    d = tl.arange(0, D)
    z = tl.zeros((D, D), tl.float32)
    for g in range(GROUPS):
        query_head = head * GROUPS + g
        x_head = x_ptr + head // Hk * stride_xb + (head % Hk * GROUPS + g) * stride_xh
        for first in range(start, end, BT):
            t = first + tl.arange(0, BT)
            xt = tl.load(xt_ptr + query_head * D * T_padded + d[:, None] * T_padded + t[None, :])
            x = tl.load(x_head + t[:, None].to(tl.int64) * stride_xt + d[None, :], mask=t[:, None] < T, other=0.0)
            factor = tl.full((BT,), 1.0, tl.float32)
            if GATED:
                factor = tl.load(gate_ptr + head * T_padded + t)
            if WEIGHTED:
                factor *= tl.load(weight_ptr + query_head * T_padded + t)
            z = tl.dot((xt * factor[None, :]).to(x.dtype), x, z, input_precision=PRECISION)
    tl.store(z_ptr + (head * slots + n) * D * D + d[:, None] * D + d[None, :], z)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def discumsum_kernel(
    state_ptr,
    high_ptr,
    initial_ptr,
    final_ptr,
    T_padded,
    chunk,
    n_chunks,
    n_updates,
    SIZE: tl.constexpr,
    GATED: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Discounted cumulative sum over chunks, in place: slot n+1 of ``state`` [B·Hk, n_chunks+1, SIZE] goes from what
    chunk n adds to the state after it. The sum is carried in float32. Grid (SIZE / BLOCK, B·Hk).
    """
    head = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if HAS_INITIAL:
        carry = tl.load(initial_ptr + head * SIZE + e)
        tl.store(state_ptr + head * (n_chunks + 1) * SIZE + e, carry.to(state_ptr.dtype.element_ty))
    else:
        carry = tl.zeros((BLOCK,), tl.float32)
    for n in tl.range(n_updates, num_stages=SCAN_STAGES):
        slot = state_ptr + (head * (n_chunks + 1) + n + 1) * SIZE + e
        added = tl.load(slot).to(tl.float32)
        if GATED:
            carry *= tl.exp2(tl.load(high_ptr + head * T_padded + (n + 1) * chunk - 1))
        carry += added
        tl.store(slot, carry.to(state_ptr.dtype.element_ty))
    if HAS_FINAL:
        tl.store(final_ptr + head * SIZE + e, carry)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def reverse_discumsum_kernel(
    dstate_ptr,
    high_ptr,
    dfinal_ptr,
    dinitial_ptr,
    T_padded,
    chunk,
    n_chunks,
    SIZE: tl.constexpr,
    GATED: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same backwards in time: slot n of ``dstate`` [B·Hk, n_chunks, SIZE] goes from chunk n's own gradient of the
    state before it to the gradient of the state after it. Grid (SIZE / BLOCK, B·Hk).
    """
    head = tl.program_id(1).to(tl.int64)
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if HAS_FINAL:
        carry = tl.load(dfinal_ptr + head * SIZE + e)
    else:
        carry = tl.zeros((BLOCK,), tl.float32)
    for back in tl.range(n_chunks, num_stages=SCAN_STAGES):
        slot = dstate_ptr + (head * n_chunks + (n_chunks - 1 - back)) * SIZE + e
        own = tl.load(slot).to(tl.float32)
        tl.store(slot, carry.to(dstate_ptr.dtype.element_ty))
        if GATED:
            carry *= tl.exp2(tl.load(high_ptr + head * T_padded + (n_chunks - back) * chunk - 1))
        carry += own
    if HAS_INITIAL:
        tl.store(dinitial_ptr + head * SIZE + e, carry)


@triton.jit(do_not_specialize=RUN_TIME_SIZES)
def inner_product_kernel(
    state_ptr,
    dstate_ptr,
    high_ptr,
    out_ptr,
    T_padded,
    chunk,
    n_chunks,
    SIZE: tl.constexpr,
    V: tl.constexpr,
    D: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_INITIAL: tl.constexpr,
    HAS_FINAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """⟨γ S, dS⟩ across each chunk, added to ``out`` [B·Hk, n_chunks]: S the state before it, γ its gates, dS the
    gradient of the state after it. Rows that stand for their mirrors too count twice.

    The first chunk has no state before it and the last no gradient after it unless they are given. Grid
    (n_chunks, B·Hk).
    """
    n = tl.program_id(0)
    head = tl.program_id(1).to(tl.int64)
    if (n > 0 or HAS_INITIAL) and (n < n_chunks - 1 or HAS_FINAL):
        state = state_ptr + (head * (n_chunks + 1) + n) * SIZE
        dstate = dstate_ptr + (head * n_chunks + n) * SIZE
        total = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, SIZE, BLOCK):
            e = first + tl.arange(0, BLOCK)
            row = e // V
            weight = tl.where((row < SPLIT * D) & (row % D >= SPLIT), 2.0, 1.0)
            total += weight * tl.load(state + e).to(tl.float32) * tl.load(dstate + e).to(tl.float32)
        gate = tl.exp2(tl.load(high_ptr + head * T_padded + (n + 1) * chunk - 1))
        out = out_ptr + head * n_chunks + n
        tl.store(out, tl.load(out) + gate * tl.sum(total, 0))
