"""Launches Triton kernels at the cost of a look-up: the kernels here run for less time than Triton takes to analyse
their arguments, so a compiled kernel is kept for each kind of arguments and launched directly.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

RUN_TIME_SIZES = ("H", "Hk", "T", "n_chunks", "n_updates", "slots", "heads", "programs", "rows_per_program")
"""Numbers that kernels are not compiled anew for, where Triton would for 1 and for multiples of 16. What addresses are
computed from (strides, ``chunk``, ``T_padded``) is left to it: knowing that 16 divides them makes wide loads."""

_compiled: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
"""By all that Triton compiles for: of tensors the type and alignment, of numbers whether they are 1, whether 16 divides
them and their width, and the constants."""


def run_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **constants: Any) -> None:
    """Launches ``kernel`` on the current stream of the current device.

    Args:
        grid: programs in each of up to three dimensions.
        arguments: tensors and numbers, in the kernel's order; its constants come after them.
        constants: those constants by name, and the launch's options (``num_warps``, ``num_stages``).
    """
    kinds = [
        (x == 1, x % 16 == 0, x < 2**31) if type(x) is int
        else (x.dtype, x.device, x.data_ptr() % 16 == 0) if isinstance(x, Tensor)
        else float
        for x in arguments
    ]  # fmt: skip
    key = (kernel.fn, *kinds, *constants.items())
    found = _compiled.get(key)
    if found is None:
        compiled = kernel[grid](*arguments, **constants)
        if compiled is not None:  # it is None in Triton's interpreter
            rest = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
            _compiled[key] = compiled, rest
        return
    compiled, rest = found
    compiled[(*grid, 1, 1)[:3]](*arguments, *rest)


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    return 1 << (x - 1).bit_length() if x > 1 else 1
