"""The command line: ``icl-eval``."""

import ast
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from icl_eval.commands import data
from icl_eval.commands import mixer as mixer_commands
from icl_eval.commands import task as task_commands
from icl_eval.commands.claims import claims
from icl_eval.commands.compare import compare
from icl_eval.commands.doctor import doctor
from icl_eval.commands.launching import (
    DeviceOption,
    GpusOption,
    JobsOption,
    LauncherOption,
    OutOption,
    PresetArgument,
    ScaleOption,
    TextOption,
    launch,
)
from icl_eval.commands.lm_eval import lm_eval
from icl_eval.commands.measure import measure
from icl_eval.commands.path import path
from icl_eval.commands.report import report
from icl_eval.commands.tune import tune_command
from icl_eval.config import lookup
from icl_eval.experiment import Untrained
from icl_eval.minutes import ASSUMPTION, total_minutes
from icl_eval.models import MIXERS
from icl_eval.presets import define_preset, load_preset, on_text, preset_files
from icl_eval.printing import new_console, print_table
from icl_eval.run_folder import RunFolderError, load_runs
from icl_eval.summary import summarise
from icl_eval.tables import (
    matches,
    plan_table,
    starts,
    state_table,
    states_needed,
    wsfr_table,
)
from icl_eval.tasks import TASKS, GeneratedTask, Task
from icl_eval.tuning import apply_ledger

app = typer.Typer(
    help="Train matched-compute sequence models and measure what their context is worth.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(task_commands.app, name="task")
app.add_typer(mixer_commands.app, name="mixer")
IS_MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
"""Under torchrun one process speaks, draws and reports."""
console = new_console(quiet=not IS_MAIN_PROCESS)


@app.command("list")
def list_names() -> None:
    """List presets, tasks and mixers."""
    sections = {
        "presets": {
            name: _first_sentence(ast.get_docstring(ast.parse(file.read_text())))
            for name, file in preset_files().items()
        },
        "tasks": {name: _first_sentence(task.__doc__) + _state_needed(task) for name, task in TASKS.items()},
        "mixers": {name: _first_sentence(mixer.__doc__) for name, mixer in MIXERS.items()},
    }
    for title, entries in sections.items():
        console.print(f"[bold]{title}[/bold]")
        grid = Table.grid(padding=(0, 1))
        for name, about in entries.items():
            grid.add_row(f"  {name:22}", Text(about))
        console.print(grid)


@app.command()
def show(
    preset: PresetArgument,
    scale: ScaleOption = None,
    text: TextOption = None,
    config: Annotated[bool, typer.Option("--config", help="The resolved configuration instead, as JSON.")] = False,
) -> None:
    """Print a preset's arms, matched budgets and GPU minutes, or its resolved configuration, without training."""
    experiment = define_preset(preset, scale)
    if isinstance(experiment, Untrained):
        return _nothing_to_train(experiment)
    if text is not None:
        experiment = on_text(experiment, text)
    if config:
        return console.print_json(data=experiment.to_dict())
    console.print(f"{experiment.question}\n", highlight=False)
    print_table(console, plan_table(experiment))
    for sentence in (*matches(experiment), *starts(experiment), *states_needed(experiment)):
        console.print(sentence, highlight=False)
    console.print(f"\nabout {total_minutes(experiment):,.1f} GPU minutes a seed ({ASSUMPTION})", highlight=False)
    return None


@app.command()
def run(
    preset: PresetArgument,
    scale: ScaleOption = None,
    out: OutOption = Path("runs"),
    device: DeviceOption = "auto",
    seeds: Annotated[str | None, typer.Option(help="Seeds, as in 0,1,2, in place of the preset's.")] = None,
    arms: Annotated[str | None, typer.Option(help="Arms to run, as in linear,power, in place of all.")] = None,
    text: TextOption = None,
    ledger: Annotated[Path | None, typer.Option(help="Take each arm's best learning rate from a ledger.")] = None,
    jobs: JobsOption = 1,
    launcher: LauncherOption = "local",
    gpus_per_run: GpusOption = 1.0,
    sharding: Annotated[
        str, typer.Option(help="Under torchrun: none (DDP), or fsdp2 to share the model out.")
    ] = "none",
    tracker: Annotated[str | None, typer.Option(help="Also log to tensorboard or another of accelerate's.")] = None,
) -> None:
    """Train and measure all arms of a preset, draw its figures and print its table. Killed, it resumes."""
    experiment = define_preset(preset, scale)
    if isinstance(experiment, Untrained):
        return _nothing_to_train(experiment)
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
    if IS_MAIN_PROCESS and any(folder.rglob("DONE")):
        finished = [run for run in load_runs(folder) if run.seed in experiment.seeds]
        console.print(f"\n{experiment.question}\n", highlight=False)
        summarise(finished, folder, console)
    if failures:
        raise RunFolderError(f"runs failed: {'; '.join(failures.values())}")
    return None


app.command("tune")(tune_command)


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; that of the first RUN if not given.")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Your file, where the runs use tasks or mixers of yours.")] = None,
) -> None:
    """Draw the figures and print the table of finished runs."""
    if preset is not None:
        load_preset(preset)
    summarise(load_runs(runs), out or runs[0], console)


@app.command()
def table(
    which: Annotated[str, typer.Argument(metavar="wsfr|state", help="Weight:state FLOP ratios, or state sizes.")],
) -> None:
    """Print one of the paper's tables of arithmetic, computed by the accounting code, beside the paper's figures."""
    print_table(console, lookup({"wsfr": wsfr_table, "state": state_table}, which, "table")())


app.command()(doctor)
app.command()(claims)
app.command()(report)
app.command()(measure)
app.command()(compare)
app.command()(path)
app.command("lm-eval", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lm_eval)


def main() -> None:
    """Run the command line; what the user did wrong is said in a sentence, without a traceback."""
    try:
        app()
    except (ValueError, TypeError, RunFolderError) as error:
        if isinstance(error, TypeError) and " has no field " not in str(error):
            raise
        Console(stderr=True).print(f"error: {error}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)


def _nothing_to_train(preset: Untrained) -> None:
    console.print(f"\n{preset.question}\n\nNothing to train; its answer comes from", highlight=False)
    for command in preset.commands:
        console.print(f"  {command}", highlight=False)


def _parse_seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--seeds {text!r}: must be whole numbers parted by commas, such as 0,1,2") from None


def _state_needed(task: type[Task]) -> str:
    """What a generated task asks of a state with its defaults; other tasks may need fields that have none."""
    bits = task().state_bits if issubclass(task, GeneratedTask) else None
    return "" if bits is None else f" [{bits:,.0f} bits of state]"


def _first_sentence(documentation: str | None) -> str:
    """That of a docstring; a full stop at its end is left out."""
    paragraph = " ".join((documentation or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s", paragraph)[0].removesuffix(".")


if __name__ == "__main__":
    main()
