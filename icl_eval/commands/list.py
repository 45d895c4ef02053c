"""``icl-eval list``: presets, tasks and mixers."""

import ast
import re

import typer
from rich.table import Table
from rich.text import Text

from icl_eval.printing import new_console

app = typer.Typer(add_completion=False)


@app.command()
def list_names() -> None:
    """List presets, tasks and mixers."""
    from icl_eval.models import MIXERS
    from icl_eval.presets import preset_files
    from icl_eval.tasks import TASKS, GeneratedTask

    # What a generated task asks of a state with its defaults; other tasks may need fields that have none.
    needed = {name: task().state_bits for name, task in TASKS.items() if issubclass(task, GeneratedTask)}
    bits = {name: f" [{number:,.0f} bits of state]" for name, number in needed.items() if number is not None}
    sections = {
        "presets": {
            name: _first_sentence(ast.get_docstring(ast.parse(file.read_text())))
            for name, file in preset_files().items()
        },
        "tasks": {name: _first_sentence(task.__doc__) + bits.get(name, "") for name, task in TASKS.items()},
        "mixers": {name: _first_sentence(mixer.__doc__) for name, mixer in MIXERS.items()},
    }
    console = new_console()
    for title, entries in sections.items():
        console.print(f"[bold]{title}[/bold]")
        grid = Table.grid(padding=(0, 1))
        for name, about in entries.items():
            grid.add_row(f"  {name:22}", Text(about))
        console.print(grid)


def _first_sentence(documentation: str | None) -> str:
    """That of a docstring; a full stop at its end is left out."""
    paragraph = " ".join((documentation or "").strip().split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s", paragraph)[0].removesuffix(".")
