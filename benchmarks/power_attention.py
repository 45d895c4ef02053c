"""Benchmarks power attention against torch's softmax attention on one GPU: table, CSV and figures.

    python benchmarks/power_attention.py --out results/kernels

Every row is a median with its 20 % and 80 % quantiles, of bfloat16 random inputs, causal, gated where it applies. Peers
run in the same process, last the package ``retention`` if it is installed. Nothing is timed unless the kernels first
pass their self-check. The seconds of a process's first forward and backward pass, with an empty cache of compiled
kernels and with the cache that this leaves, are of processes of their own.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from kernel_figures import draw
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import logsigmoid, scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile
from triton.testing import do_bench

from icl_eval.kernels import default_chunk_size, power_attention, power_attention_flops, power_attention_step
from icl_eval.kernels.power.backends import TOLERANCE, self_check
from icl_eval.run import source_commit

HEADS = 12
QUANTILES = (0.5, 0.2, 0.8)
SDPA = {"softmax cuDNN": SDPBackend.CUDNN_ATTENTION, "softmax flash": SDPBackend.FLASH_ATTENTION}
OPERATIONS = {
    "update_state": ("update_state_kernel", "update_normalizer_kernel"),
    "discumsum": ("discumsum_kernel",),
    "attention + query_state": ("forward_kernel",),
    "layout": ("transpose_kernel", "running_gates_kernel"),
}
RETENTION_SHAPES = ((1, 65536, 64), (8, 4096, 64), (1, 65536, 32))
"""Batch, tokens and head_dim of the rows for the package ``retention``."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement. Times in milliseconds; FLOPs of the mathematical state, causal."""

    provider: str
    mode: str
    batch: int
    tokens: int
    head_dim: int
    median_ms: float | None
    low_ms: float | None
    high_ms: float | None
    tflops_per_s: float | None
    share_of_matmul_peak: float | None
    tokens_per_s: float | None
    peak_extra_mb: float | None


def inputs(batch: int, tokens: int, head_dim: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """q, k, v [B, T, H, D] wanting gradients, log gates [B, T, H], and a gradient of the output."""
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, tokens, HEADS, *shape, generator=generator, device="cuda")

    qkv = [normal(head_dim).bfloat16().requires_grad_() for _ in range(3)]
    return qkv, logsigmoid(normal() + 4).requires_grad_(), normal(head_dim).bfloat16()


def providers(
    batch: int, tokens: int, head_dim: int, forced_chunk: bool = False, skip: tuple[str, ...] = ()
) -> dict[str, tuple[Callable[[], Tensor], list]]:
    """Name to a forward pass and the inputs it differentiates."""
    (q, k, v), log_g, _ = inputs(batch, tokens, head_dim)
    chunk = default_chunk_size(head_dim, head_dim, 2)

    def softmax(backend: SDPBackend) -> Tensor:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)), is_causal=True).transpose(1, 2)

    found: dict[str, tuple[Callable[[], Tensor], list]] = {
        "power p=2": (
            lambda: power_attention(q, k, v, log_g, backend="triton", chunk_size=chunk if forced_chunk else None),
            [q, k, v, log_g],
        )
    }
    if forced_chunk:
        found["power p=2, attention"] = (
            lambda: power_attention(q, k, v, log_g, backend="triton", chunk_size=tokens),
            [q, k, v, log_g],
        )
    for name, backend in SDPA.items():
        found[name] = ((lambda backend=backend: softmax(backend)), [q, k, v])
    return {name: provider for name, provider in found.items() if name not in skip}


def retention(batch: int, tokens: int, head_dim: int) -> dict[str, tuple[Callable[[], Tensor], list]]:
    """As :func:`providers`, of the package ``retention``, which tunes itself for minutes in its first passes."""
    from retention import power_retention

    (q, k, v), log_g, _ = inputs(batch, tokens, head_dim)
    return {"retention": (lambda: power_retention(q, k, v, log_g, deg=2, chunk_size=1024), [q, k, v, log_g])}


def trim_autotuning(count: int) -> None:
    """Leave ``count`` settings, evenly spaced, of each kernel that packages imported from now on have Triton tune."""
    autotune = triton.autotune

    def trimmed(configs: list, *args: Any, **kwargs: Any) -> Any:
        return autotune(configs[:: -(-len(configs) // count)], *args, **kwargs)

    triton.autotune = trimmed


def flops(provider: str, mode: str, batch: int, tokens: int, head_dim: int, forced_chunk: bool) -> float:
    """Forward FLOPs, and with the backward pass 3.5 times those of attention and 3 times those of the state."""
    if provider.startswith("softmax"):
        forward = 2.0 * tokens * (tokens + 1) * head_dim
        return batch * HEADS * forward * (1 if mode == "forward" else 3.5)
    default = default_chunk_size(head_dim, head_dim, 2)
    chunk = tokens if "attention" in provider or (not forced_chunk and tokens <= 4 * default) else default
    sizes = {"head_dim": head_dim, "value_dim": head_dim, "degree": 2}
    total = power_attention_flops(tokens, **sizes, chunk_size=chunk)
    pairs = sum(n * (n + 1) / 2 for n in (chunk,)) * tokens / chunk
    attention = 2 * pairs * (2 * head_dim + 1)
    return batch * HEADS * (total if mode == "forward" else 3.5 * attention + 3 * (total - attention))


def measure(
    found: dict[str, tuple[Callable[[], Tensor], list]],
    batch: int,
    tokens: int,
    head_dim: int,
    peak: float,
    forced_chunk: bool = False,
) -> list[Row]:
    """Forward and forward + backward of every provider at one shape."""
    rows = []
    *_, dy = inputs(batch, tokens, head_dim)
    for name, (forward, wanted) in found.items():

        def both(forward: Callable[[], Tensor] = forward, wanted: list = wanted) -> None:
            torch.autograd.grad(forward(), wanted, dy)

        for mode, function in (("forward", torch.no_grad()(forward)), ("forward + backward", both)):
            try:
                median, low, high = do_bench(function, warmup=20, rep=150, quantiles=list(QUANTILES))
            except Exception as failure:  # a peer that cannot run leaves its row empty
                print(f"# {name} {mode}: {type(failure).__name__}: {str(failure).splitlines()[0]}", file=sys.stderr)
                median = low = high = None
            rate = share = speed = extra = None
            if median:
                rate = flops(name, mode, batch, tokens, head_dim, forced_chunk) / median / 1e9
                share = rate / peak
                speed = batch * tokens / median * 1e3
                extra = peak_extra_mb(function, both is function, wanted, dy)
            row = Row(
                provider=name,
                mode=mode,
                batch=batch,
                tokens=tokens,
                head_dim=head_dim,
                median_ms=median,
                low_ms=low,
                high_ms=high,
                tflops_per_s=rate,
                share_of_matmul_peak=share,
                tokens_per_s=speed,
                peak_extra_mb=extra,
            )
            rows.append(row)
            print_row(row)
    return rows


def peak_extra_mb(function: Callable[[], object], trained: bool, wanted: list, dy: Tensor) -> float:
    """Peak memory beyond inputs, the output and, in training, the gradients."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    own = dy.nbytes + (sum(x.nbytes for x in wanted) if trained else 0)
    return (torch.cuda.max_memory_allocated() - before - own) / 1e6


def print_row(row: Row) -> None:
    if row.median_ms is None:
        print(f"{row.batch:>3} x {row.tokens:<8} d{row.head_dim:<4} {row.mode:<19} {row.provider:<22} -", flush=True)
        return
    print(
        f"{row.batch:>3} x {row.tokens:<8} d{row.head_dim:<4} {row.mode:<19} {row.provider:<22} "
        f"{row.median_ms:9.3f} ms [{row.low_ms:.3f}, {row.high_ms:.3f}]  "
        f"{row.tflops_per_s:6.0f} TFLOP/s ({row.share_of_matmul_peak:4.0%} of peak)  "
        f"{row.tokens_per_s / 1e6:8.2f} Mtok/s  {row.peak_extra_mb:8.0f} MB",
        flush=True,
    )


def decode(batch: int, tokens: int, head_dim: int, copy_bytes_per_s: float) -> dict[str, float]:
    """One decoding step: power's constant state against softmax over a cache of ``tokens``."""
    (q, k, v), log_g, _ = inputs(batch, 1, head_dim)
    token = [x.detach()[:, 0] for x in (q, k, v, log_g)]
    with torch.no_grad():
        _, state = power_attention_step(*token, None)
        power = do_bench(lambda: power_attention_step(*token, state), quantiles=list(QUANTILES))
        cache = [torch.randn(batch, HEADS, tokens, head_dim, device="cuda", dtype=torch.bfloat16) for _ in range(2)]
        query = token[0][:, :, None]
        softmax = do_bench(lambda: scaled_dot_product_attention(query, *cache), quantiles=list(QUANTILES))
    moved = 2 * sum(x.nbytes for x in state if x is not None)
    result = {
        "batch": batch,
        "cache_tokens": tokens,
        "head_dim": head_dim,
        "power_ms": power[0],
        "softmax_ms": softmax[0],
        "tokens_per_s_ratio": softmax[0] / power[0],
        "share_of_copy_bandwidth": moved / power[0] * 1e3 / copy_bytes_per_s,
    }
    print("decode:", ", ".join(f"{key} {value:.3g}" for key, value in result.items()), flush=True)
    return result


def operations(head_dim: int, tokens: int, chunk_sizes: list[int]) -> list[dict[str, float | str]]:
    """Forward time in milliseconds by operation and chunk size, from the profiler."""
    (q, k, v), log_g, _ = inputs(1, tokens, head_dim)
    rows: list[dict[str, float | str]] = []
    for chunk in chunk_sizes:

        def forward(chunk: int = chunk) -> Tensor:
            with torch.no_grad():
                return power_attention(q, k, v, log_g, backend="triton", chunk_size=chunk)

        forward()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(5):
                forward()
            torch.cuda.synchronize()
        for operation, kernels in OPERATIONS.items():
            total = sum(event.device_time for event in recorded.events() if event.name in kernels)
            rows.append({"head_dim": head_dim, "chunk": chunk, "operation": operation, "ms": total / 5e3})
    return rows


FIRST_CALL = """
import time, torch
from icl_eval.kernels import power_attention
q, k, v = torch.randn(3, 1, 65536, 12, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True)
log_g = torch.full((1, 65536, 12), -0.01, device="cuda", requires_grad=True)
torch.cuda.synchronize()
start = time.perf_counter()
power_attention(q, k, v, log_g).float().square().mean().backward()
torch.cuda.synchronize()
print(time.perf_counter() - start)
"""


def first_calls() -> dict[str, float]:
    """Seconds of the first forward and backward pass of two processes, of which the first finds no compiled kernels."""
    with tempfile.TemporaryDirectory() as cache:
        seconds = [
            float(
                subprocess.run(
                    [sys.executable, "-c", FIRST_CALL],
                    env=os.environ | {"TRITON_CACHE_DIR": cache},
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                ).stdout
            )
            for _ in range(2)
        ]
    result = dict(zip(("empty_cache_s", "filled_cache_s"), seconds, strict=True))
    print("first forward and backward:", result, flush=True)
    return result


def ceilings() -> tuple[float, float]:
    """Measured TFLOP/s of a large bfloat16 matrix product, and bytes/s of a device copy (read + write)."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = do_bench(lambda: a @ b, return_mode="median")
    source = torch.randn(2**30, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = do_bench(lambda: target.copy_(source), return_mode="median")
    return 2 * 8192**3 / matmul / 1e9, 2 * source.nbytes / copy * 1e3


def environment() -> dict[str, str]:
    return {
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": importlib.import_module("triton").__version__,
        "cuda": str(torch.version.cuda),
        "python": platform.python_version(),
        "commit": source_commit(),
        "command": f"python {' '.join(sys.argv)}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/kernels"), help="folder for CSV, JSON and figures")
    parser.add_argument(
        "--retention-settings",
        type=int,
        metavar="COUNT",
        help="let the package retention tune each of its kernels over so many settings only",
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for head_dim in (32, 64):
        error = self_check(torch.device("cuda"), torch.bfloat16, head_dim, head_dim, 1, 2, "row_sum", True)
        if not error <= TOLERANCE[torch.bfloat16]:
            raise SystemExit(f"the kernels are wrong here (relative error {error:.1e}): nothing is timed")
    first = first_calls()
    peak, copy = ceilings()
    details = environment() | {"matmul_tflops_per_s": f"{peak:.0f}", "copy_tb_per_s": f"{copy / 1e12:.2f}"}
    print(details, flush=True)

    rows: list[Row] = []
    for head_dim in (64, 32):
        rows += measure(providers(1, 65536, head_dim), 1, 65536, head_dim, peak)
    rows += measure(providers(8, 4096, 64, True), 8, 4096, 64, peak, forced_chunk=True)
    for head_dim in (64, 32):
        for tokens in (1024, 2048, 4096, 8192, 16384, 32768):
            rows += measure(providers(1, tokens, head_dim), 1, tokens, head_dim, peak)
        for tokens, skip in ((2**17, ("softmax flash",)), (2**20, tuple(SDPA))):
            rows += measure(providers(1, tokens, head_dim, skip=skip), 1, tokens, head_dim, peak)
    by_operation = [row for d in (64, 32) for row in operations(d, 65536, [128, 256, 512, 1024, 2048, 4096])]
    decoding = [decode(batch, 65536, 64, copy) for batch in (1, 8, 32)] + [decode(64, 16384, 64, copy)]

    write_rows(rows, arguments.out / "power_attention.csv", details)
    summary = {"environment": details, "first_call": first, "decode": decoding, "forward_by_operation": by_operation}
    (arguments.out / "power_attention.json").write_text(json.dumps(summary, indent=1) + "\n")
    draw(arguments.out)
    if importlib.util.find_spec("retention"):
        if arguments.retention_settings:
            trim_autotuning(arguments.retention_settings)
        for shape in RETENTION_SHAPES:
            rows += measure(retention(*shape), *shape, peak)
            write_rows(rows, arguments.out / "power_attention.csv", details)


def write_rows(rows: list[Row], path: Path, details: dict[str, str]) -> None:
    kept = {key: details[key] for key in ("gpu", "torch", "triton", "commit")}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*asdict(rows[0]), *kept])
        writer.writeheader()
        writer.writerows(asdict(row) | kept for row in rows)


if __name__ == "__main__":
    main()
