"""Seconds of a preset's training steps on one GPU: recorded as CUDA graphs, and taken one by one.

    python benchmarks/steps.py fig7_balanced_icl:power fig9_long_context:linear --out results/training

Each arm is timed as the trainer would step it, on random tokens that are made beforehand, at its whole sequences and at
the pieces that it starts on, if any. Writes ``steps.csv`` (mean seconds of a step over ``--steps`` in a row, whose end
is waited for; tokens/s) and ``steps.json`` (GPU, versions, commit, command).
"""

import argparse
import csv
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from icl_eval.experiment import Arm
from icl_eval.presets import load_preset
from icl_eval.run import environment, make_accelerator
from icl_eval.step import prepare, rows_of, warm_up
from icl_eval.step_graphs import StepGraphs
from icl_eval.tasks import Batch

WARMUP = 3
"""Steps before time is taken: one as it is, one recorded."""


def random_batch(arm: Arm) -> Batch:
    rows, length = arm.training.batch_size, arm.task.seq_len
    tokens = torch.randint(arm.model.vocab_size, (rows, length + 1))
    position = torch.arange(length).expand(rows, length)
    scored = torch.ones(rows, length, dtype=torch.bool)
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), scored, position, torch.arange(rows))


def time_arm(arm: Arm, steps: int) -> list[dict[str, Any]]:
    accelerator = make_accelerator("cuda")
    training = replace(arm.training, compile=True)
    arm = replace(arm, training=training)
    whole = random_batch(arm)
    batches = [whole]
    if training.start_context is not None:
        batches.insert(0, whole.cut(training.start_context, training.start_batch_size))
    model, optimizer = prepare(arm, 0, accelerator)
    rows = []
    for batch in batches:
        warm_up(model, rows_of(batch, accelerator), arm, accelerator)
        for recorded in (False, True):
            step = StepGraphs(model, optimizer, arm, accelerator)
            step.recording = recorded
            for _ in range(WARMUP):
                step(batch, 1e-4)
            torch.cuda.synchronize()
            started = time.perf_counter()
            for _ in range(steps):
                step(batch, 1e-4)
            torch.cuda.synchronize()
            seconds = (time.perf_counter() - started) / steps
            rows.append(
                {
                    "arm": arm.name,
                    "sequences": len(batch.tokens),
                    "seq_len": batch.tokens.shape[1],
                    "recorded": step.recording,
                    "seconds": seconds,
                    "tokens_per_second": batch.tokens.numel() / seconds,
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", metavar="PRESET:ARM")
    parser.add_argument("--scale", default="h200")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    for name in arguments.arms:
        preset, _, wanted = name.partition(":")
        arms = {arm.name: arm for arm in load_preset(preset, arguments.scale).arms}
        if wanted not in arms:
            parser.error(f"{name!r}: {preset} has the arms {', '.join(arms)}")
        rows += [{"preset": preset, **row} for row in time_arm(arms[wanted], arguments.steps)]
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = {**environment(torch.device("cuda")), "command": sys.argv}
    (arguments.out / "steps.json").write_text(json.dumps(about, indent=2) + "\n")
    with (arguments.out / "steps.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
