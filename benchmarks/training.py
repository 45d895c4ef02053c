"""Training throughput of the paper's ``small`` model (124 M) with each mixer, on one GPU.

    python benchmarks/training.py --out results/training

Times whole optimiser steps of the harness' own loss module (forward, chunked cross-entropy, backward, clipping, AdamW)
in bfloat16 autocast on random tokens, one sequence a step, all mixers in one process. Writes ``training.csv`` (median
and 20/80 % quantiles of the step, tokens/s, share of the measured bf16 matmul peak on weight and state FLOPs without
recomputation, peak memory) and ``training.json`` (GPU, versions, commit, command).
"""

import argparse
import csv
import json
import sys
from pathlib import Path

import torch
from triton.testing import do_bench

from icl_eval.budget import BACKWARD_FACTOR
from icl_eval.measure import ScoredLoss
from icl_eval.models import Linear, MixerConfig, ModelConfig, Power, Softmax, Window
from icl_eval.run import environment

VOCAB_SIZE = 50_304
MIXERS: dict[str, MixerConfig] = {
    "softmax": Softmax(width=768, num_heads=12),
    "power p=2": Power(width=768, num_heads=12),
    "linear": Linear(width=768, num_heads=12),
    "window-1024": Window(width=768, num_heads=12, window=1024),
}


def matmul_peak() -> float:
    """Measured FLOP/s of an 8192-cubed bf16 matrix product on random data."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / (do_bench(lambda: a @ b, return_mode="median") * 1e-3)


def time_steps(mixer: MixerConfig, context: int, steps: int, compiled: bool) -> dict[str, float]:
    """Quantiles of the seconds of ``steps`` training steps after two for warming up, and peak memory (bytes)."""
    config = ModelConfig(vocab_size=VOCAB_SIZE, num_layers=12, mixers=(mixer,), tied_embeddings=True)
    model = ScoredLoss(config.build()).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    tokens = torch.randint(0, VOCAB_SIZE, (1, context + 1), device="cuda")
    seconds = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        with torch.autocast("cuda", torch.bfloat16):
            nll, _ = model(tokens[:, :-1], tokens[:, 1:])
        nll.mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) * 1e-3)
    if not torch.isfinite(nll).all():
        raise RuntimeError(f"{mixer.label} at context {context}: the loss is not finite")
    low, median, high = torch.tensor(seconds[2:]).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    flops = BACKWARD_FACTOR * config.flops_per_token(context).total
    return {
        "seconds": median,
        "seconds_q20": low,
        "seconds_q80": high,
        "tokens_per_second": context / median,
        "flops_per_second": flops * context / median,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 65_536])
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    peak = matmul_peak()
    rows = []
    for context in arguments.contexts:
        softmax = None
        for name, mixer in MIXERS.items():
            row = {"mixer": name, "context": context, "compiled": arguments.compile}
            row |= time_steps(mixer, context, arguments.steps, arguments.compile)
            softmax = softmax or row["tokens_per_second"]
            row |= {"over_softmax": row["tokens_per_second"] / softmax, "share_of_peak": row["flops_per_second"] / peak}
            rows.append(row)
            print(
                f"{name:12} {context:6} tokens{row['seconds'] * 1e3:8.1f} ms {row['tokens_per_second']:9,.0f} tokens/s",
                f"{row['over_softmax']:.2f}x softmax {row['share_of_peak']:.0%} of peak {row['peak_memory_gb']:.1f} GB",
                flush=True,
            )
            torch.cuda.empty_cache()
            torch.compiler.reset()
    with (arguments.out / "training.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    about = {**environment(torch.device("cuda")), "matmul_peak_flops_per_second": peak, "command": sys.argv}
    (arguments.out / "training.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
