"""How fast every task's training batches are made, in one process on one core.

    python benchmarks/tasks.py --out results/tasks

Every task of ``TASKS`` that needs no path or network, with its defaults and at 4,096 and 16,384 tokens (which are left
out where a task cannot be that long), and the variants below. Batches hold 65,536 tokens. Each rate is the median of
repeats of half a second, in tokens per second of the clock and per second of the CPU; other work on the machine slows
the first. Writes ``tasks.json``: rates, bits of state, machine, versions, command, and the load of the machine.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from icl_eval.run import environment
from icl_eval.tasks import MQAR, TASKS, Induction, Markov, Needle, SourceCode, Task
from icl_eval.tasks.base import GeneratedTask

REQUIRED = 2e6
"""Tokens per second that training is never to wait for."""
BATCH_TOKENS = 65_536
LENGTHS = (4096, 16_384)
VARIANTS = (
    MQAR(num_rewrites=16),
    MQAR(seq_len=16_384, vocab_size=8192, num_pairs=2048, query_decay=0.01),
    MQAR(seq_len=512, num_pairs=64, min_pairs=4, random_filler=False, axis="pairs"),
    Induction(seq_len=1024, num_triggers=64, trigger_length=3),
    Needle(seq_len=16_384, num_needles=1024, num_queries=32),
    Markov(order=2),
    Markov(num_states=32),
)


def tasks() -> Iterator[Task]:
    """The tasks to time."""
    for cls in TASKS.values():
        if issubclass(cls, GeneratedTask) or cls is SourceCode:
            task = cls()
            yield task
            for seq_len in LENGTHS:
                try:
                    yield replace(task, seq_len=seq_len)
                except ValueError as error:
                    print(f"left out: {error}")
    yield from VARIANTS


def measure(task: Task, repeats: int, seconds: float) -> dict[str, Any]:
    """Median rates of ``repeats`` measurements of at least ``seconds`` each."""
    source, batch_size, index = task.build(0), max(1, BATCH_TOKENS // task.seq_len), 0
    source.batch("train", index, batch_size)
    clock, cpu = [], []
    for _ in range(repeats):
        start, cpu_start, first = time.perf_counter(), time.process_time(), index
        while time.perf_counter() - start < seconds:
            index += 1
            source.batch("train", index, batch_size)
        tokens = (index - first) * batch_size * task.seq_len
        clock.append(tokens / (time.perf_counter() - start))
        cpu.append(tokens / (time.process_time() - cpu_start))
    return {
        "task": task.to_dict(),
        "batch_size": batch_size,
        "state_bits": task.state_bits,
        "tokens_per_second": round(statistics.median(clock)),
        "tokens_per_cpu_second": round(statistics.median(cpu)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows = []
    for task in tasks():
        rows.append(measure(task, arguments.repeats, arguments.seconds))
        clock, cpu = (rows[-1][key] / 1e6 for key in ("tokens_per_second", "tokens_per_cpu_second"))
        short = "" if cpu * 1e6 >= REQUIRED else f"   below {REQUIRED / 1e6:g}"
        print(f"{cpu:7.1f} M tokens/s of CPU, {clock:7.1f} of the clock  {task}{short}", flush=True)
    about = {**environment(torch.device("cpu")), "cores": os.cpu_count(), "load_average": [load, os.getloadavg()[0]]}
    arguments.out.mkdir(parents=True, exist_ok=True)
    result = {"rows": rows, **about, "command": " ".join(["python", *sys.argv])}
    (arguments.out / "tasks.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
