"""Measures launch settings of the Triton kernels on this GPU and prints the lines to add to the table in ``tuning``.

    python -m icl_eval.kernels.power.tune --head-dim 64 --value-dim 64
    python -m icl_eval.kernels.power.tune --head-dim 64 --value-dim 64 --attention-alone --batch 8 --tokens 4096

Each kernel's candidates are tried one after another while the other kernels keep their settings; a candidate that does
not compile or fit is left out. A few minutes, mostly of compilation. Where :mod:`hopper` has the kernel, its settings
are measured, else those of Triton's.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from icl_eval.kernels.power import tuning
from icl_eval.kernels.power.attention import power_attention
from icl_eval.kernels.power.launch import takes_hopper
from icl_eval.kernels.power.tiles import split_of
from icl_eval.kernels.power.tuning import Launch, launch

KERNELS = ("update_state", "forward", "query_gradient", "key_value_gradient")
REPETITIONS = 5


def candidates(kernel: str, head_dim: int, on_hopper: bool) -> Iterator[Launch]:
    """Settings worth trying; those of the best known entries are among them."""
    if kernel == "update_state":
        for warps, count, tokens, stages in itertools.product((1, 2, 4), (2, 4), (32, 64, 128), (2, 3)):
            if count * 2 <= split_of(head_dim) and (not on_hopper or warps == 4):
                yield launch(warps, 2, COUNT=count, BT=tokens, STAGES=stages)
    elif on_hopper and kernel == "key_value_gradient":
        rings = ((2, 2), (2, 3), (2, 4), (4, 2), (4, 3), (8, 2))  # as many as fit shared memory
        tiles = ((4, 64), (8, 128)) if head_dim == 64 else ((4, 64), (4, 128))
        for (warps, tile), other, (count, stages) in itertools.product(tiles, (32, 64), rings):
            yield launch(warps, 1, BK=tile, BQ=other, COUNT=count, STAGES=stages)
    elif on_hopper:
        for tile, other, count, stages in itertools.product((64, 128), (32, 64), (2, 4), (2, 3, 4)):
            yield launch(4, 1, BM=tile, BN=other, COUNT=count, STAGES=stages)
    else:
        rows, columns = ("BK", "BQ") if kernel == "key_value_gradient" else ("BM", "BN")
        for (warps, tile), other, stages in itertools.product(((4, 64), (4, 128), (8, 128)), (32, 64), (3, 4)):
            yield launch(warps, 3, **{rows: tile, columns: other, "STAGES": stages})


def kernel_microseconds(
    kernel: str, head_dim: int, value_dim: int, batch: int, tokens: int, chunk_size: int | None
) -> float:
    """Median time of one kernel in a forward and backward pass of 12 heads, gated, bfloat16, degree 2."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, tokens, 12, *shape, generator=generator, device="cuda")

    q, k = (normal(head_dim).bfloat16().requires_grad_() for _ in range(2))
    v = normal(value_dim).bfloat16().requires_grad_()
    log_g = torch.nn.functional.logsigmoid(normal() + 4).requires_grad_()
    dy = normal(value_dim).bfloat16()

    def once() -> None:
        y = power_attention(q, k, v, log_g, backend="triton", chunk_size=chunk_size)
        assert isinstance(y, torch.Tensor)
        torch.autograd.grad(y, (q, k, v, log_g), dy)

    once()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(REPETITIONS):
            once()
        torch.cuda.synchronize()
    times = sorted(event.device_time for event in recorded.events() if event.name == f"{kernel}_kernel")
    return times[len(times) // 2]


def tune(kernel: str, head_dim: int, value_dim: int, batch: int, tokens: int, attention_alone: bool) -> None:
    """Measures a kernel's candidates, keeps the best and prints it."""
    device = torch.device("cuda", torch.cuda.current_device())
    on_hopper = takes_hopper(kernel, head_dim, value_dim, 2, torch.bfloat16, device)
    if attention_alone and not on_hopper:
        raise SystemExit(f"--attention-alone: {kernel} is not one of Hopper's here; Triton's have one setting for both")
    table: dict[Any, Launch] = tuning.TABLE
    if on_hopper:
        table = tuning.ATTENTION_ALONE if attention_alone else tuning.HOPPER
    key = (kernel, head_dim) if on_hopper else (tuning.architecture(device), kernel, head_dim, value_dim)
    measured: list[tuple[float, Launch]] = []
    for candidate in candidates(kernel, head_dim, on_hopper):
        table[key] = candidate
        try:
            chunk_size = tokens if attention_alone else None
            microseconds = kernel_microseconds(kernel, head_dim, value_dim, batch, tokens, chunk_size)
        except Exception as failure:  # compilers refuse settings in many ways; any refusal drops the candidate
            print(f"# {kernel} {candidate.options}: {type(failure).__name__}")
        else:
            measured.append((microseconds, candidate))
            print(f"# {kernel} {candidate.options}: {microseconds:.0f} µs", flush=True)
    microseconds, best = min(measured, key=lambda entry: entry[0])
    table[key] = best
    tiles = ", ".join(f"{name}={value}" for name, value in best.tiles)
    print(f"    {key}: launch({best.num_warps}, {best.num_stages}, {tiles}),  # {microseconds:.0f} µs", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--head-dim", type=int, required=True, help="elements, a power of two")
    parser.add_argument("--value-dim", type=int, required=True, help="elements, a power of two")
    parser.add_argument(
        "--tokens", type=int, default=65536, help="sequence length to measure at (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=1, help="sequences (default: %(default)s)")
    parser.add_argument("--attention-alone", action="store_true", help="one chunk, so that there are no states")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, help="which (default: all)")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("tuning needs a CUDA GPU")
    for kernel in arguments.kernels:
        if kernel != "update_state" or not arguments.attention_alone:
            tune(
                kernel, arguments.head_dim, arguments.value_dim, arguments.batch, arguments.tokens,
                arguments.attention_alone,
            )  # fmt: skip


if __name__ == "__main__":
    main()
