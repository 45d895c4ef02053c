"""Which backend runs a call, and why: the Triton kernels are used where they are known to work."""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from typing import Any

import torch
from torch import Tensor

TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
MAX_HEAD_DIM = 128
MAX_DEGREE = 4
MIN_CAPABILITY = (8, 0)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
TOLERANCE = {torch.bfloat16: 2e-2, torch.float16: 2e-2, torch.float32: 1e-3}
"""Largest relative error norm of a self-check against the chunked form in float32."""


def triton_problem(q: Tensor, v: Tensor, degree: int) -> str | None:
    """Why the Triton kernels cannot take these tensors, or None."""
    if not TRITON_INSTALLED:
        return "Triton is not installed"
    if q.dtype not in DTYPES:
        return f"the kernels compute in bfloat16, float16 or float32, not {q.dtype}"
    if max(q.shape[-1], v.shape[-1]) > MAX_HEAD_DIM:
        return f"the kernels take head and value dims up to {MAX_HEAD_DIM}, got {q.shape[-1]} and {v.shape[-1]}"
    if degree > MAX_DEGREE:
        return f"the kernels take degrees up to {MAX_DEGREE}, got {degree}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not q.is_cuda:
        return f"the kernels need a CUDA GPU, got tensors on {q.device}"
    if _capability(q.device) < MIN_CAPABILITY:
        least, there = (".".join(map(str, x)) for x in (MIN_CAPABILITY, _capability(q.device)))
        return f"the kernels need compute capability {least}, got {there}"
    return None


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def works(q: Tensor, v: Tensor, degree: int, normalization: str, gated: bool) -> bool:
    """Whether the kernels pass a small self-check on this GPU at these sizes; warns once where they do not.

    The check runs once a process for each setting, on 256 tokens, forward and backward. What it compiles, a training
    call needs too. While torch.compile is tracing, or a CUDA graph is recorded, nothing can be run: the kernels are
    trusted there unless a check has failed before.
    """
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if torch.compiler.is_compiling() or torch.cuda.is_current_stream_capturing():
        return not _a_check_failed
    groups = q.shape[-2] // v.shape[-2]
    return _checked(q.device, q.dtype, q.shape[-1], v.shape[-1], groups, degree, normalization, gated)


_a_check_failed = False


@functools.cache
def _checked(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    groups: int,
    degree: int,
    normalization: str,
    gated: bool,
) -> bool:
    from icl_eval.kernels.power import launch

    call = (device, dtype, head_dim, value_dim, groups, degree, normalization, gated)
    what = f"{dtype}, head_dim {head_dim}, value_dim {value_dim}, degree {degree} on {device}"
    problem = _self_check_problem(*call)
    if problem and launch.any_on_hopper(head_dim, value_dim, degree, dtype, device):
        launch.set_hopper_aside()
        _checked.cache_clear()  # what was found for other calls was found of Hopper's kernels
        _warn(f"power_attention uses its portable Triton kernels, not those for Hopper, for {what}: {problem}")
        problem = _self_check_problem(*call)
    if problem:
        global _a_check_failed
        _a_check_failed = True
        _warn(f"power_attention falls back to backend='chunked' for {what}: {problem}")
    return problem is None


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=6)


def _self_check_problem(device: torch.device, dtype: torch.dtype, *options: Any) -> str | None:
    try:
        error = self_check(device, dtype, *options)
    except torch.cuda.OutOfMemoryError:
        raise  # says nothing of the kernels
    except Exception as failure:  # a compiler may fail in any way; another form may still give the right result
        first_line = str(failure).strip().partition("\n")[0]
        return f"{type(failure).__name__}: {first_line}"
    return None if error <= TOLERANCE[dtype] else f"a self-check is off by {error:.1e}"


def self_check(
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    groups: int,
    degree: int,
    normalization: str,
    gated: bool,
) -> float:
    """Largest relative error of the kernels' output and gradients against the float32 chunked form."""
    from icl_eval.kernels.power.chunked import chunked_power_attention
    from icl_eval.kernels.power.fused import STATE_DEGREES, fused_power_attention

    T, chunk = 256, 128 if degree in STATE_DEGREES else 256
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    q, k = normal(1, T, groups, head_dim).to(dtype), normal(1, T, 1, head_dim).to(dtype)
    v, dy = normal(1, T, 1, value_dim).to(dtype), normal(1, T, groups, value_dim).to(dtype)
    gates = [torch.nn.functional.logsigmoid(normal(1, T, 1) + 4)] if gated else []
    results = []
    with torch.enable_grad():
        for function, x in (
            (fused_power_attention, (q, k, v)),
            (chunked_power_attention, (q.float(), k.float(), v.float())),
        ):
            leaves = [t.detach().requires_grad_() for t in (*x, *gates)]
            y, _ = function(  # type: ignore[misc]
                *leaves[:3],
                leaves[3] if gated else None,  # type: ignore[arg-type]
                degree=degree,
                scale=head_dim**-0.5,
                normalization=normalization,
                chunk_size=chunk,
                initial_state=None,
                return_state=False,
            )
            results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
    errors = [(a.double() - b.double()).norm() / b.double().norm() for a, b in zip(*results, strict=True)]
    largest = torch.stack(errors).max().item()
    return largest if largest == largest else float("inf")
