"""``icl-eval run``: train and measure all arms of a preset; killed, it resumes."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch.distributed
import typer

from icl_eval.commands import options
from icl_eval.commands.launching import launch
from icl_eval.commands.show import show_untrained
from icl_eval.experiment import Untrained
from icl_eval.presets import define_preset, on_text
from icl_eval.printing import new_console
from icl_eval.run_folder import RunFolderError, load_runs
from icl_eval.summary import summarise
from icl_eval.tuning import apply_ledger

app = typer.Typer(add_completion=False)
IS_MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
"""Under torchrun one process speaks, draws and reports."""


@app.command()
def run(
    preset: options.PresetArgument,
    scale: options.ScaleOption = None,
    out: options.OutOption = Path("runs"),
    device: options.DeviceOption = "auto",
    seeds: Annotated[str | None, typer.Option(help="Seeds, as in 0,1,2, in place of the preset's.")] = None,
    arms: Annotated[str | None, typer.Option(help="Arms to run, as in linear,power, in place of all.")] = None,
    text: options.TextOption = None,
    ledger: Annotated[Path | None, typer.Option(help="Take each arm's best learning rate from a ledger.")] = None,
    jobs: options.JobsOption = 1,
    launcher: options.LauncherOption = "local",
    gpus_per_run: options.GpusOption = 1.0,
    sharding: Annotated[
        str, typer.Option(help="Under torchrun: none (DDP), or fsdp2 to share the model out.")
    ] = "none",
    tracker: Annotated[str | None, typer.Option(help="Also log to tensorboard or another of accelerate's.")] = None,
) -> None:
    """Train and measure all arms of a preset, draw its figures and print its table. Killed, it resumes."""
    console = new_console(quiet=not IS_MAIN_PROCESS)
    experiment = define_preset(preset, scale)
    if isinstance(experiment, Untrained):
        return show_untrained(console, experiment)
    if seeds is not None:
        experiment = replace(experiment, seeds=_parse_seeds(seeds))
    if text is not None:
        experiment = on_text(experiment, text)
    experiment, tuning = (experiment, {}) if ledger is None else apply_ledger(experiment, ledger)
    for name in (name for name, record in tuning.items() if record["at_edge"]):
        console.print(f"warning: the learning rate of {name} lies at the edge of its grid", highlight=False)
    if reused := [name for name, record in tuning.items() if record["reused"]]:
        console.print(
            f"learning rates of {', '.join(reused)}: found on other documents or another start", highlight=False
        )
    folder, failures = launch(
        experiment,
        out,
        preset=preset,
        device=device,
        jobs=jobs,
        launcher=launcher,
        gpus_per_run=gpus_per_run,
        console=console,
        sharding=sharding,
        tracker=tracker,
        tuning=tuning,
        arms=arms,
    )
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    finished = [path for seed in experiment.seeds for path in folder.glob(f"*/seed{seed}/DONE")]
    if IS_MAIN_PROCESS and finished:
        console.print(f"\n{experiment.question}\n", highlight=False)
        summarise([run for run in load_runs(folder) if run.seed in experiment.seeds], folder, console)
    if failures:
        raise RunFolderError(f"runs failed: {'; '.join(failures.values())}")
    return None


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds {text!r}: must be whole numbers parted by commas, such as 0,1,2") from None
