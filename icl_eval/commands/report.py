"""``icl-eval report``: verdicts, figures and settings of runs in one HTML file and its Markdown twin."""

from pathlib import Path
from typing import Annotated

import typer

from icl_eval.commands.options import UsersFileOption
from icl_eval.kernel_times import find_kernel_times
from icl_eval.presets import load_preset
from icl_eval.report import write_report
from icl_eval.run_folder import load_runs

app = typer.Typer(add_completion=False)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, folders of runs, or of the kernel benchmark.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for report.html, report.md and figures/.")] = Path("report"),
    preset: UsersFileOption = None,
) -> None:
    """Write verdicts on the paper's claims with figures and settings, as one HTML file and as Markdown."""
    if preset is not None:
        load_preset(preset)
    kernels = find_kernel_times(runs)
    trained = [folder for folder in runs if kernels is None or any(folder.rglob("DONE"))]
    for file in write_report(load_runs(trained) if trained else [], kernels, out):
        typer.echo(file)
