"""``icl-eval table``: the paper's tables of arithmetic, computed, beside the paper's figures."""

from typing import Annotated

import typer

from icl_eval.config import lookup
from icl_eval.printing import new_console, print_table
from icl_eval.tables import state_table, wsfr_table

app = typer.Typer(add_completion=False)


@app.command()
def table(
    which: Annotated[str, typer.Argument(metavar="wsfr|state", help="Weight:state FLOP ratios, or state sizes.")],
) -> None:
    """Print one of the paper's tables of arithmetic, computed by the accounting code, beside the paper's figures."""
    print_table(new_console(), lookup({"wsfr": wsfr_table, "state": state_table}, which, "table")())
