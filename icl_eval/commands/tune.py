"""``icl-eval tune``: equal tries of the learning rate for every arm."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from icl_eval.commands import options
from icl_eval.commands.launching import launch
from icl_eval.presets import load_preset, on_text
from icl_eval.printing import new_console, print_table
from icl_eval.tuning import Grid, tune

app = typer.Typer(add_completion=False)


@app.command()
def tune_command(
    preset: options.PresetArgument,
    scale: options.ScaleOption = None,
    out: options.OutOption = Path("runs"),
    ledger: Annotated[Path | None, typer.Option(help="The ledger; OUT/ledger.json if not given.")] = None,
    rates: Annotated[
        str | None, typer.Option(help="Rates tried first, as in 1e-3,2e-3; half to four times each arm's if not given.")
    ] = None,
    fraction: Annotated[float, typer.Option(help="Share of each arm's budget.")] = 0.25,
    text: options.TextOption = None,
    device: options.DeviceOption = "auto",
    jobs: options.JobsOption = 1,
    launcher: options.LauncherOption = "local",
    gpus_per_run: options.GpusOption = 1.0,
) -> None:
    """Try learning rates for every arm of a preset, equally many, and write what came out to a ledger."""
    console = new_console()
    path = ledger or out / "ledger.json"
    experiment = load_preset(preset, scale)
    if text is not None:
        experiment = on_text(experiment, text)
    grids = tune(
        experiment,
        out,
        ledger=path,
        rates=None if rates is None else _parse_rates(rates),
        fraction=fraction,
        launch=partial(
            launch,
            preset=preset,
            device=device,
            jobs=jobs,
            launcher=launcher,
            gpus_per_run=gpus_per_run,
            console=console,
        ),
    )
    print_table(console, _grid_table(grids))
    for name, grid in grids.items():
        if grid.at_edge:
            console.print(f"warning: the best rate of {name} lies at the edge of its grid", highlight=False)
    again = {"--scale": scale, "--text": text, "--ledger": path}
    given = " ".join(f"{option} {value}" for option, value in again.items() if value is not None)
    console.print(f"\nicl-eval run {preset} {given}", highlight=False, soft_wrap=True)


def _grid_table(grids: dict[str, Grid]) -> Table:
    """The loss of every rate, the best one marked."""
    table = Table(
        "arm",
        "rate",
        "loss (nats), 95 %",
        "seconds",
        box=None,
        header_style="bold",
        pad_edge=False,
        caption_justify="left",
    )
    for name, grid in grids.items():
        for entry in grid.tries:
            rate, loss = entry["learning_rate"], entry["loss"]
            found = "NaN" if loss is None else "{:.4f} [{:.4f}, {:.4f}]".format(loss, *entry["interval"])
            table.add_row(name, f"{rate:g}", found + (" *" if rate == grid.best else ""), f"{entry['seconds']:.0f}")
        table.add_section()
    table.caption = "* best of its arm"
    return table


def _parse_rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--rates {text!r}: must be numbers parted by commas, such as 1e-3,2e-3") from None
