"""What a command ends with: tables, sentences and figures of the runs at hand."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from icl_eval.experiment import Arm
from icl_eval.measured_table import LEGEND, measured_tables
from icl_eval.plots import plot_all
from icl_eval.printing import print_table
from icl_eval.run_folder import Run
from icl_eval.studies import studies
from icl_eval.tables import bits_per_byte, in_context_learning, loss_units, results_table, sharing, waiting


def summarise(runs: Sequence[Run], out: Path, console: Console) -> None:
    """Print what runs found, and draw their figures into a folder."""
    trained = [run for run in runs if isinstance(run.arm, Arm)]
    measured = [run for run in runs if not isinstance(run.arm, Arm)]
    seeds = {run.seed for run in runs}
    spread = (
        f"over held-out documents and {len(seeds)} seeds" if len(seeds) > 1 else "over held-out documents (one seed)"
    )
    if trained:
        print_table(console, results_table(trained))
        for study in studies(trained):
            if study.unfinished:
                console.print(f"Not finished, and left out: {', '.join(study.unfinished)}.", highlight=False)
        console.print(
            f"Losses per scored token, in {loss_units(trained)}; 95 % intervals by bootstrap {spread}, widened for few."
        )
        for sentence in (*sharing(trained), *waiting(trained), *in_context_learning(trained), *bits_per_byte(trained)):
            console.print(sentence, highlight=False)
    for table in measured_tables(measured):
        print_table(console, table)
    if measured:
        console.print(f"{LEGEND} 95 % intervals by bootstrap {spread}, widened for few.", highlight=False)
    console.print("\nfigures:")
    for file in plot_all(runs, out):
        console.print(f"  {file}", highlight=False, soft_wrap=True)
