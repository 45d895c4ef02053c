"""Compiles the power kernels for a Hopper GPU on a machine without one, and records their launches instead of running
them. Run by ``test_launches.py`` as a process of its own; prints JSON.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

launches: list[tuple[Any, ...]] = []
compiled: list[str] = []
"""Names of the kernels that were compiled, in order."""


class Utilities:
    """A loaded binary is a name: nothing runs."""

    def load_binary(self, name: str, kernel: bytes, shared: int, device: int) -> tuple[int, int, int, int, int]:
        return 1, 1, 0, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448}

    def unload_module(self, module: int) -> None:
        pass


class Launcher:
    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = metadata.name

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, packed: Any, *rest: Any) -> None:
        metadata, enter, _, *arguments = rest
        if metadata is not None:
            enter(metadata)
        launches.append((self.name, (x, y, z), [described(argument) for argument in arguments]))


class DryDriver:
    utils = Utilities()
    launcher_cls = Launcher

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def described(x: Any) -> Any:
    return (str(x.dtype), tuple(x.shape), x.stride()) if isinstance(x, Tensor) else x


def main() -> None:
    driver.set_active(DryDriver())
    compile_kernel = JITFunction._do_compile

    def counted(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
        compiled.append(self.fn.__name__)
        return compile_kernel(self, *args, **kwargs)

    JITFunction._do_compile = counted

    from icl_eval.kernels import power_attention
    from icl_eval.kernels.power import attention, backends, launch, step, tuning

    launch.architecture = tuning.architecture = lambda device: "sm90"
    attention.triton_problem = lambda *_: None

    def train(T: int, H: int = 3, D: int = 64) -> list[tuple[Any, ...]]:
        launches.clear()
        q, k, v, dy = (torch.zeros(1, T, H, D, dtype=torch.bfloat16) for _ in range(4))
        leaves = [q, k, v, logsigmoid(torch.zeros(1, T, H))]
        for x in leaves:
            x.requires_grad_()
        power_attention(*leaves, backend="triton", chunk_size=128).backward(dy)
        return list(launches)

    def attend(x: Tensor) -> None:
        power_attention(x, x, x, torch.zeros(x.shape[:3]), backend="triton", chunk_size=128)

    def decode() -> list[tuple[Any, ...]]:
        launches.clear()
        token = torch.zeros(2, 3, 64, dtype=torch.bfloat16)
        state = None
        for _ in range(3):
            _, state = step.fused_step(
                token, token, token, torch.zeros(2, 3), state, degree=2, scale=0.125, normalization="row_sum"
            )
        return list(launches)

    counts = {}
    backends.self_check(torch.device("cpu"), torch.bfloat16, 64, 64, 1, 2, "row_sum", True)
    counts["self-check"] = len(compiled)
    train(500)
    counts["first call"] = len(compiled)
    for T, H in ((1024, 16), (1000, 1)):
        train(T, H)
    counts["other sizes"] = len(compiled)
    # rows that do not start at multiples of 16 elements: slices of a wider projection, and of a buffer
    rows = torch.zeros(1, 300, 2, 72, dtype=torch.bfloat16)
    attend(rows[..., :64])
    attend(rows.flatten()[1 : 1 + 300 * 2 * 64].view(1, 300, 2, 64))

    by_look_up = train(500) + train(500, D=16) + decode() + decode()

    seen: list[str] = []

    def hook(metadata: Any) -> None:
        seen.append(metadata.get()["name"])

    knobs.runtime.launch_enter_hook.add(hook)
    hooked = decode()
    knobs.runtime.launch_enter_hook.remove(hook)
    unhooked = decode()

    launch.run_kernel = lambda kernel, grid, *arguments, **constants: kernel[grid](*arguments, **constants)
    step.run_kernel = launch.run_kernel
    by_triton = train(500) + train(500, D=16) + decode() + decode()
    print(
        json.dumps(
            {
                "counts": counts,
                "by_look_up": by_look_up,
                "by_triton": by_triton,
                "seen": seen,
                "hooked": hooked,
                "unhooked": unhooked,
            }
        )
    )


if __name__ == "__main__":
    main()
