"""Launches of the power-attention kernels: grids, settings, buffers, and the choice between Triton's and Hopper's."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from icl_eval.kernels.power.backward import key_value_gradient_kernel, output_gradient_kernel, query_gradient_kernel
from icl_eval.kernels.power.compiled import ceil_div, next_power_of_2, run_kernel
from icl_eval.kernels.power.forward import forward_kernel
from icl_eval.kernels.power.gates import CLOSED_LOG_GATE
from icl_eval.kernels.power.layout import gate_gradient_kernel, running_gates_kernel, transpose_kernel
from icl_eval.kernels.power.tiles import split_of, state_rows
from icl_eval.kernels.power.tuning import ATTENTION_ALONE, HOPPER, architecture, settings
from icl_eval.kernels.power.update_state import (
    discumsum_kernel,
    inner_product_kernel,
    reverse_discumsum_kernel,
    update_normalizer_kernel,
    update_state_kernel,
)

CHUNK_MULTIPLE = 128
"""Chunks are whole tiles: a chunk size is rounded up to this, which changes no result."""

GATES_BLOCK = 1024
"""Tokens that a scan over gates takes at once. Where a chunk is the whole sequence, few programs take many in turn."""

SCAN_PROGRAMS = 1024
"""Programs wanted of a scan over chunks."""


class Call(NamedTuple):
    """Sizes and options of one call of the operator, and what derives from them.

    Attributes:
        head_dim: features of queries and keys, of which ``D`` is the padded number.
        precision: of products of float32 tensors, in Triton's words.
    """

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
    gated: bool
    normalized: bool
    precision: str
    dtype: torch.dtype
    device: torch.device

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
    def lengths(self) -> tuple[int, int, int]:
        """In tokens: of the sequence, padded to whole chunks, and of a chunk."""
        return self.T, self.padded, self.chunk

    @property
    def constants(self) -> dict[str, int | bool]:
        """Of the kernels that hold attention and a state."""
        return {
            "D": self.D, "V": self.V, "SPLIT": self.split, "ROWS": self.rows, "GROUPS": self.groups,
            "GATED": self.gated, "NORMALIZED": self.normalized,
        }  # fmt: skip

    @property
    def canonical(self) -> tuple[int, int, int, int]:
        return self.head_dim, self.D, self.split, self.degree

    def on_hopper(self, kernel: str) -> bool:
        """Whether this kernel of :mod:`hopper` takes this call."""
        return takes_hopper(kernel, self.D, self.V, self.degree, self.dtype, self.device)

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)


def call_of(
    q: Tensor, k: Tensor, v: Tensor, log_g: Tensor | None, head_dim: int, degree: int, normalized: bool, precision: str,
    chunk_size: int,
) -> Call:  # fmt: skip
    """The sizes of one call, its chunks rounded up to whole tiles."""
    B, T, H, D = q.shape
    chunk = -(-min(chunk_size, T) // CHUNK_MULTIPLE) * CHUNK_MULTIPLE
    return Call(
        B=B,
        T=T,
        H=H,
        Hk=k.shape[2],
        D=D,
        V=v.shape[-1],
        head_dim=head_dim,
        degree=degree,
        chunk=chunk,
        n_chunks=-(-T // chunk),
        gated=log_g is not None,
        normalized=normalized,
        precision=precision,
        dtype=q.dtype,
        device=q.device,
    )


class Gates(NamedTuple):
    """What :func:`running_gates_kernel` writes; any tensor where there are no gates."""

    high: Tensor
    low: Tensor
    from_start: Tensor
    to_end: Tensor


def running_gates(log_g: Tensor | None, c: Call, stand_in: Tensor) -> Gates:
    if log_g is None:
        return Gates(stand_in, stand_in, stand_in, stand_in)
    gates = Gates(*c.empty(4, c.B * c.Hk, c.padded).unbind())
    run_kernel(
        running_gates_kernel, (c.n_chunks, c.B * c.Hk), log_g, *gates, *log_g.stride(), c.Hk, *c.lengths,
        CLOSED=CLOSED_LOG_GATE, BLOCK=GATES_BLOCK,
    )  # fmt: skip
    return gates


def transposed(x: Tensor, c: Call, kernel: str) -> Tensor:
    """x [B, T, H, D] as [B·H, D, padded], for this kernel: Triton's copy 4 bytes at least asynchronously, a float32."""
    B, _, H, D = x.shape
    dtype = c.dtype if c.on_hopper(kernel) else torch.float32
    out = c.empty(B * H, D, c.padded, dtype=dtype)
    run_kernel(
        transpose_kernel, (ceil_div(c.padded, 64), B * H), x, out, *x.stride()[:3], H, c.T, c.padded, D=D, BLOCK=64
    )
    return out


def _chosen(name: str, portable: Any, c: Call, *, alone: bool = False) -> tuple[Any, dict[str, Any]]:
    """A kernel of :mod:`hopper` or its portable form, and its settings with what only the portable form is told.

    ``alone``: it meets no states.
    """
    if c.on_hopper(name):
        key = name, c.D
        table = ATTENTION_ALONE if alone and key in ATTENTION_ALONE else HOPPER
        return getattr(hopper_kernels(), f"{name}_kernel"), table[key].options
    own = {"DEGREE": c.degree, "PRECISION": c.precision}
    return portable, settings(name, c.D, c.V, c.dtype, c.device).options | own


def update_states(x: Tensor, xt: Tensor, v: Tensor, gate: Tensor, out: Tensor, c: Call, groups: int) -> None:
    """What each chunk adds to the state, into ``out`` [B·Hk, chunks to update, rows, V]."""
    kernel, options = _chosen("update_state", update_state_kernel, c)
    programs = 1
    if c.degree == 1:
        options["COUNT"] = 1
    else:
        programs = c.split // options["COUNT"] + (c.D - c.split) // (2 * options["COUNT"])
    n_updates = out.shape[1]
    run_kernel(
        kernel, (programs * n_updates * c.B * c.Hk,), x, xt, v, gate, out, *x.stride()[:3], *v.stride()[:3], c.Hk,
        *c.lengths, n_updates, c.rows * c.V, out.stride(0) // (c.rows * c.V), D=c.D, V=c.V, SPLIT=c.split,
        GROUPS=groups, GATED=c.gated, **options,
    )  # fmt: skip


def update_normalizers(
    x: Tensor, xt: Tensor, weight: Tensor | None, gate: Tensor, out: Tensor, c: Call, groups: int
) -> None:
    """What each chunk adds to the normaliser, into ``out`` [B·Hk, chunks to update, D, D]."""
    n_updates = out.shape[1]
    run_kernel(
        update_normalizer_kernel, (n_updates, c.B * c.Hk), x, xt, gate if weight is None else weight, gate, out,
        *x.stride()[:3], c.Hk, *c.lengths, n_updates, out.stride(0) // c.D**2, D=c.D, GROUPS=groups, GATED=c.gated,
        WEIGHTED=weight is not None, PRECISION=c.precision, BT=64 if c.D <= 64 and x.dtype == torch.bfloat16 else 32,
    )  # fmt: skip


def discumsum(states: Tensor, high: Tensor, start: Tensor | None, c: Call, n_updates: int, final: bool) -> Tensor:
    """In place, over ``states`` [B·Hk, chunks + 1, ...]; returns the state after the last chunk, if asked for."""
    size = states[0, 0].numel()
    last = c.empty(c.B * c.Hk, size) if final else high
    block = _scan_block(size, c)
    run_kernel(
        discumsum_kernel, (size // block, c.B * c.Hk), states, high, high if start is None else start, last, c.padded,
        c.chunk, c.n_chunks, n_updates, SIZE=size, GATED=c.gated, HAS_INITIAL=start is not None, HAS_FINAL=final,
        BLOCK=block,
    )  # fmt: skip
    return last


def reverse_discumsum(dstates: Tensor, high: Tensor, last: Tensor | None, c: Call, has_initial: bool) -> Tensor:
    """In place; returns the gradient of the state before the first chunk, if there is one."""
    size = dstates[0, 0].numel()
    block = _scan_block(size, c)
    first = c.empty(c.B * c.Hk, size) if has_initial else high
    run_kernel(
        reverse_discumsum_kernel, (size // block, c.B * c.Hk), dstates, high, high if last is None else last, first,
        c.padded, c.chunk, c.n_chunks, SIZE=size, GATED=c.gated, HAS_FINAL=last is not None, HAS_INITIAL=has_initial,
        BLOCK=block,
    )  # fmt: skip
    return first


def inner_products(
    states: Tensor, dstates: Tensor, high: Tensor, out: Tensor, c: Call, *, columns: int, split: int, has_initial: bool,
    has_final: bool,
) -> None:  # fmt: skip
    """⟨γ S, dS⟩ across each chunk, added to ``out`` [B·Hk, chunks], of states whose rows have ``columns`` elements."""
    size = states[0, 0].numel()
    run_kernel(
        inner_product_kernel, (c.n_chunks, c.B * c.Hk), states, dstates, high, out, c.padded, c.chunk, c.n_chunks,
        SIZE=size, V=columns, D=c.D, SPLIT=c.D if c.degree == 1 else split, HAS_INITIAL=has_initial,
        HAS_FINAL=has_final, BLOCK=min(2048, size & -size), num_warps=8,
    )  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, qt: Tensor, gates: Gates, states: Tensor, normalizers: Tensor, y: Tensor,
    y_low: Tensor, row_sum: Tensor, c: Call, *, has_initial: bool, output_scale: float,
) -> None:  # fmt: skip
    """Writes ``y``, what rounding cut off it (unless ``y_low`` is empty) and the row sums."""
    kernel, options = _chosen("forward", forward_kernel, c, alone=not states.numel())
    extra = () if c.on_hopper("forward") else (qt,)
    run_kernel(
        kernel, (ceil_div(c.T, options["BM"]), c.B * c.H), q, k, v, *extra, gates.high, gates.low, states,
        normalizers, y, y_low, row_sum, *_strides(q, k, v), c.H, *c.lengths, c.n_chunks, output_scale, **c.constants,
        HAS_INITIAL=has_initial, KEEP_LOW=y_low.numel() > 0, **options,
    )  # fmt: skip


def output_gradient(
    dy: Tensor, y: Tensor, y_low: Tensor, row_sum: Tensor, do: Tensor, dn: Tensor, c: Call, output_scale: float
) -> None:
    """Writes the gradients of the un-normalised outputs and of the row sums."""
    run_kernel(
        output_gradient_kernel, (ceil_div(c.padded, 64), c.B * c.H), dy, y, y_low, row_sum, do, dn, *dy.stride()[:3],
        c.H, c.T, c.padded, output_scale, V=c.V, NORMALIZED=c.normalized, HAS_LOW=y_low.numel() > 0, BLOCK=64,
    )  # fmt: skip


def query_gradient(
    q: Tensor, k: Tensor, v: Tensor, qt: Tensor, do: Tensor, dn: Tensor, gates: Gates, states: Tensor,
    normalizers: Tensor, dq: Tensor, share: Tensor, c: Call, *, has_initial: bool,
) -> None:  # fmt: skip
    """Writes ``dq`` and the queries' share of the gates' gradient."""
    kernel, options = _chosen("query_gradient", query_gradient_kernel, c, alone=not states.numel())
    extra = () if c.on_hopper("query_gradient") else (qt,)
    run_kernel(
        kernel, (ceil_div(c.T, options["BM"]), c.B * c.H), q, k, v, *extra, do, dn, gates.high, gates.low, states,
        normalizers, dq, share, *_strides(q, k, v), c.H, *c.lengths, c.n_chunks, **c.constants, HAS_INITIAL=has_initial,
        **options,
    )  # fmt: skip


def key_value_gradient(
    q: Tensor, k: Tensor, v: Tensor, kt: Tensor, do: Tensor, dn: Tensor, gates: Gates, dstates: Tensor,
    dnormalizers: Tensor, dk: Tensor, dv: Tensor, share: Tensor, later_share: Tensor, c: Call, *, has_final: bool,
) -> None:  # fmt: skip
    """Writes ``dk``, ``dv`` and the keys' share of the gates' gradient: of all queries, and of later chunks' alone."""
    kernel, options = _chosen("key_value_gradient", key_value_gradient_kernel, c, alone=not dstates.numel())
    extra = () if c.on_hopper("key_value_gradient") else (kt,)
    run_kernel(
        kernel, (ceil_div(c.T, options["BK"]), c.B * c.Hk), q, k, v, *extra, do, dn, gates.high, gates.low, dstates,
        dnormalizers, dk, dv, share, later_share, *_strides(q, k, v), c.Hk, *c.lengths, c.n_chunks, **c.constants,
        HAS_FINAL=has_final, **options,
    )  # fmt: skip


def gate_gradient(
    key_share: Tensor, later_share: Tensor, query_share: Tensor, across: Tensor, log_g: Tensor, dlog_g: Tensor, c: Call,
) -> None:  # fmt: skip
    """Writes ``dlog_g``."""
    run_kernel(
        gate_gradient_kernel, (c.n_chunks, c.B * c.Hk), key_share, later_share, query_share, across, log_g, dlog_g,
        *log_g.stride(), c.Hk, *c.lengths, GROUPS=c.groups, CLOSED=CLOSED_LOG_GATE, BLOCK=GATES_BLOCK,
    )  # fmt: skip


def kernel_dim(dim: int) -> int:
    """Features that kernels are given for ``dim`` of them, the rest zero."""
    return max(16, next_power_of_2(dim))


def unit_stride(x: Tensor) -> Tensor:
    """x, or a copy: kernels read features as one run of memory, 16 bytes at a time, from where the compiler can tell
    that it starts at a multiple of that, which takes strides of whole 16 elements.
    """
    aligned = x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and all(n % 16 == 0 for n in x.stride()[:3])
    return x if aligned else x.clone(memory_format=torch.contiguous_format)


def _scan_block(size: int, c: Call) -> int:
    """Elements a program of a scan over chunks carries: fewer where that fills the GPU."""
    return max(256, min(1024, next_power_of_2(size * c.B * c.Hk // SCAN_PROGRAMS)))


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for x in tensors for stride in x.stride()[:3])


_hopper_trusted = True


def takes_hopper(
    kernel: str, head_dim: int, value_dim: int, degree: int, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether this kernel of :mod:`hopper` takes calls of these sizes on this device."""
    fits = (kernel, head_dim) in HOPPER and (value_dim, degree, dtype) == (head_dim, 2, torch.bfloat16)
    return fits and _hopper_trusted and architecture(device) == "sm90" and hopper_kernels() is not None


def any_on_hopper(head_dim: int, value_dim: int, degree: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether any kernel of :mod:`hopper` takes calls of these sizes, which may not be padded yet, on this device."""
    sizes = kernel_dim(head_dim), kernel_dim(value_dim)
    return any(takes_hopper(kernel, *sizes, degree, dtype, device) for kernel, _ in HOPPER)


def set_hopper_aside() -> None:
    """From now on Triton's kernels take every call of this process."""
    global _hopper_trusted
    _hopper_trusted = False


@functools.cache
def hopper_kernels() -> Any:
    """The module of Hopper's kernels, or None: Gluon differs between Tritons, and the interpreter has none."""
    try:
        from icl_eval.kernels.power import hopper
    except (ImportError, AttributeError):
        return None
    return hopper
