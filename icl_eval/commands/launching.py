"""How the commands that train do so: here, in several processes, or on Ray."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from icl_eval.commands.progress import live_line
from icl_eval.config import lookup
from icl_eval.experiment import Experiment
from icl_eval.launch import run_here, run_in_processes, run_on_ray


def launch(
    experiment: Experiment,
    out: Path,
    *,
    preset: str,
    device: str,
    jobs: int,
    launcher: str,
    gpus_per_run: float,
    console: Console,
    sharding: str = "none",
    tracker: str | None = None,
    tuning: dict[str, Any] | None = None,
    arms: str | None = None,
) -> tuple[Path, dict[str, str]]:
    """Run an experiment as the options say; gives its folder, and why runs failed, by arm."""

    if (sharding != "none" or int(os.environ.get("WORLD_SIZE", "1")) > 1) and (jobs != 1 or launcher != "local"):
        raise ValueError("torchrun, which --sharding needs, goes neither with --jobs nor with --launcher ray")

    if jobs != 1 and launcher != "local":
        raise ValueError(f"--jobs {jobs}: --launcher {launcher} runs as many at a time as its cluster has room for")

    if gpus_per_run != 1 and launcher == "local":
        raise ValueError(f"--gpus-per-run {gpus_per_run:g}: needs --launcher ray; here --jobs shares the GPUs out")

    def on_end(run: str, failure: str | None) -> None:
        console.print(f"{run}: {'done' if failure is None else f'failed: {failure}'}", highlight=False, markup=False)

    def locally(experiment: Experiment, out: Path) -> tuple[Path, dict[str, str]]:
        if jobs != 1:
            return run_in_processes(experiment, out, jobs=jobs, on_end=on_end, **options)
        with live_line(console) as callbacks:
            return run_here(experiment, out, sharding=sharding, **options, **callbacks)

    options: dict[str, Any] = {"preset": preset, "device": device, "tracker": tracker, "tuning": tuning}
    if arms is not None:
        known = {arm.name: arm.name for arm in experiment.arms}
        chosen = [lookup(known, name.strip(), "arm") for name in arms.split(",")]
        options["only"] = {(name, seed) for name in chosen for seed in experiment.seeds}
    on_ray = partial(run_on_ray, gpus_per_run=gpus_per_run, on_end=on_end, **options)
    launchers: dict[str, Callable[[Experiment, Path], tuple[Path, dict[str, str]]]] = {"local": locally, "ray": on_ray}
    try:
        return lookup(launchers, launcher, "launcher")(experiment, out)
    except KeyboardInterrupt:
        Console(stderr=True).print("interrupted: the same command resumes", highlight=False)
        raise typer.Exit(130) from None
