"""What a user sees while runs are under way."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from icl_eval.experiment import Arm


@contextmanager
def live_line(console: Console) -> Iterator[dict[str, Any]]:
    """Callbacks for ``run_experiment`` that keep a live line: step, loss, tokens/s, FLOP/s, share of peak, time left.

    Where the console is no terminal, a run's end is all that is said.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]:.3f}  {task.fields[speed]}"),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        peak = matmul_peak() if console.is_terminal and torch.cuda.is_available() else None
        current: list[tuple[TaskID, Arm]] = []
        last: tuple[int, float] = (0, 0.0)

        def on_start(arm: Arm, seed: int, steps: int) -> None:
            task = progress.add_task(f"{arm.name} seed {seed}", total=steps, loss=float("nan"), speed="")
            current[:] = [(task, arm)]
            nonlocal last
            last = 0, time.perf_counter()

        def on_progress(step: int, loss: float) -> None:
            nonlocal last
            ((task, arm),) = current
            now = time.perf_counter()
            speed = _speed(arm, last[0], step, now - last[1], peak) if last[0] and console.is_terminal else ""
            last = step, now
            progress.update(task, completed=step, loss=loss, speed=speed)

        def on_end(arm: Arm, seed: int) -> None:
            for task, _ in current:
                progress.remove_task(task)
            current.clear()
            console.print(f"{arm.name} seed {seed}: done", highlight=False)

        yield {"on_start": on_start, "on_progress": on_progress, "on_end": on_end}


def _speed(arm: Arm, start: int, stop: int, seconds: float, peak: float | None) -> str:
    flops = (arm.flops_after(stop) - arm.flops_after(start)) / seconds
    share = f" ({flops / peak:.0%} of peak)" if peak else ""
    tokens = (arm.tokens_after(stop) - arm.tokens_after(start)) / seconds
    return f"{tokens:,.0f} tokens/s  {flops / 1e12:.3g} TFLOP/s{share}"


def matmul_peak() -> float:
    """Measured FLOP/s of an 8192-cubed bfloat16 matrix product on the GPU."""
    a, b = torch.randn(2, 8192, 8192, device="cuda", dtype=torch.bfloat16)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(3):
        a @ b
    start.record()
    for _ in range(10):
        a @ b
    end.record()
    end.synchronize()
    return 10 * 2 * 8192**3 / (start.elapsed_time(end) * 1e-3)
