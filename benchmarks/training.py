"""Training throughput of the paper's ``small`` model (124 M) with each mixer, on one GPU.

    python benchmarks/training.py --out results/training

Times whole optimiser steps of the harness' own loss module (forward, chunked cross-entropy, backward, clipping, AdamW)
in bfloat16 autocast on random tokens, one sequence a step (or ``--batch``), all mixers in one process; and, at longer
contexts, held-out losses without gradients. Writes ``training.csv`` (median and 20/80 % quantiles of the step,
tokens/s, share of the measured bf16 matmul peak on weight and state FLOPs without recomputation, peak memory) and
``training.json`` (GPU, versions, commit, command). ``--profile`` also prints which kernels a step of each mixer spends
its time in.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
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


def time_steps(
    mixer: MixerConfig, batch: int, context: int, steps: int, compiled: bool, mode: str, profiled: bool
) -> dict[str, Any]:
    """Quantiles of the seconds of ``steps`` steps, ``"train"`` or ``"evaluate"``, after two for warming up; memory."""
    config = ModelConfig(vocab_size=VOCAB_SIZE, num_layers=12, mixers=(mixer,), tied_embeddings=True)
    model = ScoredLoss(config.build()).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if compiled:
        model.model.compile_parts()
    tokens = torch.randint(0, VOCAB_SIZE, (batch, context + 1), device="cuda")
    weights = torch.full((batch, context), 1 / (batch * context), device="cuda")

    def step() -> Tensor:
        with torch.autocast("cuda", torch.bfloat16), torch.set_grad_enabled(mode == "train"):
            if mode == "evaluate":
                return model(tokens[:, :-1], tokens[:, 1:])[0]
            loss = model(tokens[:, :-1], tokens[:, 1:], weights=weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    seconds = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        losses = step()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) * 1e-3)
    if not torch.isfinite(losses).all():
        raise RuntimeError(f"{mixer.label} at context {context}: the loss is not finite")
    if profiled:
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            step()
            torch.cuda.synchronize()
        print(recorded.key_averages().table(sort_by="self_cuda_time_total", row_limit=40, max_name_column_width=70))
    low, median, high = torch.tensor(seconds[2:]).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist()
    flops = (BACKWARD_FACTOR if mode == "train" else 1) * config.flops_per_token(context).total
    return {
        "seconds": median,
        "seconds_q20": low,
        "seconds_q80": high,
        "tokens_per_second": batch * context / median,
        "flops_per_second": flops * batch * context / median,
        "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--contexts", type=int, nargs="+", default=[4096, 65_536])
    parser.add_argument(
        "--evaluate", type=int, nargs="*", default=[262_144], help="contexts measured without gradients"
    )
    parser.add_argument("--mixers", nargs="+", choices=MIXERS, default=list(MIXERS))
    parser.add_argument("--batch", type=int, default=1, help="sequences a step")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    peak = matmul_peak()
    about = {**environment(torch.device("cuda")), "matmul_peak_flops_per_second": peak, "command": sys.argv}
    (arguments.out / "training.json").write_text(json.dumps(about, indent=2) + "\n")
    rows = []
    cases = [*(("train", context) for context in arguments.contexts), *(("evaluate", c) for c in arguments.evaluate)]
    for mode, context in cases:
        softmax = None
        for name in arguments.mixers:
            row: dict[str, Any] = {"mode": mode, "mixer": name, "batch": arguments.batch, "context": context}
            row["compiled"] = arguments.compile
            row |= time_steps(
                MIXERS[name], arguments.batch, context, arguments.steps, arguments.compile, mode, arguments.profile
            )
            softmax = row["tokens_per_second"] if name == "softmax" else softmax
            over_softmax = softmax and row["tokens_per_second"] / softmax
            row |= {"over_softmax": over_softmax, "share_of_peak": row["flops_per_second"] / peak}
            rows.append(row)
            print(
                f"{mode:9}{name:12} {context:7} tokens{row['seconds'] * 1e3:8.1f} ms",
                f"{row['tokens_per_second']:9,.0f} tokens/s",
                "" if over_softmax is None else f"{over_softmax:.2f}x softmax",
                f"{row['share_of_peak']:.0%} of peak {row['peak_memory_gb']:.1f} GB",
                flush=True,
            )
            with (arguments.out / "training.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            torch.cuda.empty_cache()
            torch.compiler.reset()


if __name__ == "__main__":
    main()
