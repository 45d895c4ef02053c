"""Compiles kernels of :mod:`icl_eval.kernels.power.hopper` to PTX on a machine without a GPU. Run by ``test_hopper.py``
as a process of its own, for which the driver and the compiler are changed.

Reads a JSON list of [kernel, arguments, constants], an argument being a number or the dtype of a tensor. Prints, for
each, the PTX and the bytes of shared memory that it takes or, where it does not compile, why; null if this Triton or
its mode has no such kernels.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver

from icl_eval.kernels.power.launch import hopper_kernels
from tests.kernels.dry_driver import DryDriver


def compiled(kernel: str, arguments: list[str | float], constants: dict[str, int]) -> dict[str, Any]:
    given = [torch.zeros(16, dtype=getattr(torch, x)) if isinstance(x, str) else x for x in arguments]
    try:
        binary = getattr(hopper_kernels(), kernel)[(1, 1)](*given, **constants)
    except Exception as failure:  # compilers refuse settings in many ways
        return {"error": f"{type(failure).__name__}: {failure}"}
    return {"ptx": binary.asm["ptx"], "shared": binary.metadata.shared}


def main() -> None:
    requests = json.load(sys.stdin)
    driver.set_active(DryDriver())
    CUDABackend.make_cubin = lambda *_, **__: b"not assembled"
    print(json.dumps(None if hopper_kernels() is None else [compiled(*request) for request in requests]))


if __name__ == "__main__":
    main()
