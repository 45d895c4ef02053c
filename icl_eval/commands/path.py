"""``icl-eval path``: where parts of the package lie, for the command lines of other tools."""

from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer

from icl_eval.config import lookup

app = typer.Typer(add_completion=False)
LM_EVAL_TASKS = Path(str(files("icl_eval.tasks.lm_eval")))


@app.command()
def path(what: Annotated[str, typer.Argument(metavar="lm-eval-tasks", help="What is looked for.")]) -> None:
    """Print where our tasks for lm-eval lie: lm-eval --include_path $(icl-eval path lm-eval-tasks)."""
    typer.echo(lookup({"lm-eval-tasks": LM_EVAL_TASKS}, what, "part"))
