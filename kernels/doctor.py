"""Checks the kernels on the user's machine, and says which backend power attention will use there, and why."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from icl_eval.kernels.power.attention import power_attention
from icl_eval.kernels.power.backends import DTYPES, TOLERANCE, self_check, triton_problem

HEAD_DIM = 64
SPEED_TOKENS = 16384
HEADS = 12
DEGREES = {1: "none", 2: "row_sum", 3: "none", 4: "row_sum"}


@dataclass(frozen=True, kw_only=True)
class Check:
    """One kernel check: forward and backward of a degree and dtype against the chunked form in float32."""

    degree: int
    dtype: str
    error: float | None
    problem: str | None

    @property
    def passed(self) -> bool:
        return self.problem is None


def doctor(device: str | None = None) -> bool:
    """Prints versions, the kernels' errors and speed, and the backend that ``backend="auto"`` uses with its reason.

    Args:
        device: for example ``"cuda:1"``; the current GPU, or the CPU where there is none, if None.

    Returns:
        Whether everything that should work here does: False if a GPU is there and some kernel fails on it.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _print_versions(where)
    probe = torch.empty(1, 1, 1, HEAD_DIM, dtype=torch.bfloat16, device=where)
    problem = triton_problem(probe, probe, 2)
    if problem:
        print(f"backend: chunked, because {problem}")
        return where.type != "cuda"
    checks = [_check(where, degree, dtype) for degree in DEGREES for dtype in DTYPES]
    print(f"{'degree':>6}  {'dtype':<9} {'error':>9} {'allowed':>9}  backend")
    for check, dtype in zip(checks, [dtype for _ in DEGREES for dtype in DTYPES], strict=True):
        error = "-" if check.error is None else f"{check.error:.1e}"
        backend = "triton" if check.passed else f"chunked, because {check.problem}"
        print(f"{check.degree:>6}  {check.dtype:<9} {error:>9} {TOLERANCE[dtype]:>9.0e}  {backend}")
    _print_speed(where)
    return all(check.passed for check in checks)


def _print_versions(where: torch.device) -> None:
    print(f"python {platform.python_version()}, torch {torch.__version__}, {_version('triton')}")
    if where.type == "cuda":
        major, minor = torch.cuda.get_device_capability(where)
        print(f"{torch.cuda.get_device_name(where)}, compute capability {major}.{minor}, CUDA {torch.version.cuda}")
    else:
        print(f"no CUDA GPU: {where.type}")


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def _check(where: torch.device, degree: int, dtype: torch.dtype) -> Check:
    error, problem = None, None
    try:
        error = self_check(where, dtype, HEAD_DIM, HEAD_DIM, 2, degree, DEGREES[degree], True)
        if not error <= TOLERANCE[dtype]:
            problem = "its result is wrong"
    except Exception as failure:  # any failure of a compiler or driver is a finding to report
        problem = f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"
    return Check(degree=degree, dtype=str(dtype).removeprefix("torch."), error=error, problem=problem)


def _print_speed(where: torch.device) -> None:
    """Forward and backward of degree 2 beside torch's attention, at one length."""
    from triton.testing import do_bench

    generator = torch.Generator(where).manual_seed(0)
    q, k, v, dy = (
        torch.randn(1, SPEED_TOKENS, HEADS, HEAD_DIM, generator=generator, device=where).bfloat16() for _ in range(4)
    )
    log_g = torch.nn.functional.logsigmoid(torch.randn(q.shape[:3], generator=generator, device=where) + 4)
    inputs = [x.requires_grad_() for x in (q, k, v)]

    def power() -> None:
        y = power_attention(q, k, v, log_g)
        assert isinstance(y, torch.Tensor)
        torch.autograd.grad(y, inputs, dy)

    def softmax() -> None:
        y = scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True)
        torch.autograd.grad(y, inputs, dy.transpose(1, 2))

    ours, theirs = (do_bench(function, return_mode="median") for function in (power, softmax))
    print(
        f"forward + backward, {SPEED_TOKENS} tokens, {HEADS} heads of {HEAD_DIM}, bfloat16: power p=2 {ours:.2f} ms, "
        f"torch's softmax attention {theirs:.2f} ms ({theirs / ours:.1f}x)"
    )


if __name__ == "__main__":
    raise SystemExit(not doctor())
