"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

PresetArgument = Annotated[str, typer.Argument(metavar="PRESET", help="A preset's name, or a Python file of yours.")]
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")]
ScaleOption = Annotated[str | None, typer.Option(help="smoke, h200 or paper, where the preset has scales.")]
OutOption = Annotated[Path, typer.Option(help="Folder for the experiment's folder.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TextOption = Annotated[Path | None, typer.Option(help="Files to put in place of every text of the preset.")]
JobsOption = Annotated[int, typer.Option(help="Runs at a time, sharing this machine's GPUs or cores.")]
LauncherOption = Annotated[str, typer.Option(help="local, or ray: a task an arm and seed on a Ray cluster.")]
GpusOption = Annotated[float, typer.Option(help="GPUs a run takes of a Ray cluster; a fraction shares one.")]
UsersFileOption = Annotated[
    str | None, typer.Option("--preset", help="Your file, where the runs use tasks or mixers of yours.")
]
