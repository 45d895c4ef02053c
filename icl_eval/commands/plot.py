"""``icl-eval plot``: figures and table of finished runs."""

from pathlib import Path
from typing import Annotated

import typer

from icl_eval.commands.options import RunsArgument, UsersFileOption
from icl_eval.presets import load_preset
from icl_eval.printing import new_console
from icl_eval.run_folder import load_runs
from icl_eval.summary import summarise

app = typer.Typer(add_completion=False)


@app.command()
def plot(
    runs: RunsArgument,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figures; that of the first RUN if not given.")
    ] = None,
    preset: UsersFileOption = None,
) -> None:
    """Draw the figures and print the table of finished runs."""
    if preset is not None:
        load_preset(preset)
    summarise(load_runs(runs), out or runs[0], new_console())
