"""What a command ends with: tables, sentences and figures of the runs at hand."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from icl_eval.experiment import Arm
from icl_eval.measured_table import LEGEND, measured_tables
from icl_eval.plots import plot_all
from icl_eval.run_folder import Run
from icl_eval.tables import bits_per_byte, in_context_learning, loss_units, results_table, waiting


def summarise(runs: Sequence[Run], out: Path, console: Console) -> None:
    """Print what runs found, and draw their figures into a folder."""
    trained = [run for run in runs if isinstance(run.arm, Arm)]
    measured = [run for run in runs if not isinstance(run.arm, Arm)]
    seeds = {run.seed for run in runs}
    spread = (
        f"over held-out documents and {len(seeds)} seeds" if len(seeds) > 1 else "over held-out documents (one seed)"
    )
    if trained:
        console.print(results_table(trained))
        console.print(
            f"Losses per scored token, in {loss_units(trained)}; 95 % intervals by bootstrap {spread}, widened for few."
        )
        for sentence in (*waiting(trained), *in_context_learning(trained), *bits_per_byte(trained)):
            console.print(sentence, highlight=False)
    for table in measured_tables(measured):
        _print_whole(table, console)
    if measured:
        console.print(f"{LEGEND} 95 % intervals by bootstrap {spread}, widened for few.", highlight=False)
    console.print("\nfigures:")
    for file in plot_all(runs, out):
        console.print(f"  {file}", highlight=False)


def _print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is: a cut number would be a wrong one."""
    needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    width, console.width = console.width, max(console.width, needed)
    console.print(table)
    console.width = width
