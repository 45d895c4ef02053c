"""Launches Triton kernels at the cost of a look-up: the kernels here run for less time than Triton takes to analyse
their arguments, so a compiled kernel is kept for each set of arguments and launched directly.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from triton import knobs
from triton.runtime import driver

RUN_TIME_SIZES = ("H", "Hk", "T", "n_chunks", "n_updates", "slots", "heads", "programs", "rows_per_program")
"""Numbers that kernels are not compiled anew for, where Triton would for 1 and for multiples of 16. What addresses are
computed from (strides, ``chunk``, ``T_padded``) is left to it: knowing that 16 divides them makes wide loads."""

MAX_KEPT = 20_000
INTERPRETED = knobs.runtime.interpret

_kept: dict[Any, tuple[Any, tuple[Any, ...]]] = {}
"""The compiled kernel and its constants in its own order, by all that Triton compiles for: the device, of tensors the
type and alignment, numbers and constants."""
_num_tensors: dict[Any, int] = {}
_hooks = knobs.runtime
"""Where profilers hang themselves in; launches go through Triton's own, slower way while one does."""


def run_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Tensor | float, **constants: Any) -> None:
    """Launches ``kernel`` on the current stream of the current device.

    Args:
        grid: programs in each of up to three dimensions.
        arguments: tensors, then numbers, in the kernel's order; its constants come after them.
        constants: those constants by name, and the launch's options (``num_warps``, ``num_stages``).
    """
    if INTERPRETED:
        kernel[grid](*arguments, **constants)
        return
    function = kernel.fn
    count = _num_tensors.get(function)
    if count is None:
        count = _num_tensors[function] = sum(isinstance(x, Tensor) for x in arguments)
    active = driver.active
    device = active.get_current_device()
    tensors: Any = arguments[:count]
    key = (
        function, device, arguments[count:], *[x.dtype for x in tensors], *[x.data_ptr() % 16 == 0 for x in tensors],
        *constants.items(),
    )  # fmt: skip
    found = _kept.get(key)
    if found is None:
        if len(_kept) >= MAX_KEPT:
            _kept.clear()
        compiled = kernel[grid](*arguments, **constants)
        _kept[key] = compiled, tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
        return
    compiled, rest = found
    if any(getattr(hook, "calls", hook) for hook in (_hooks.launch_enter_hook, _hooks.launch_exit_hook)):
        compiled[(*grid, 1, 1)[:3]](*arguments, *rest)
        return
    compiled.run(
        *(*grid, 1, 1)[:3], active.get_current_stream(device), compiled.function, compiled.packed_metadata, None, None,
        None, *arguments, *rest,
    )  # fmt: skip


def ceil_div(x: int, y: int) -> int:
    return -(-x // y)


def next_power_of_2(x: int) -> int:
    return 1 << (x - 1).bit_length() if x > 1 else 1
