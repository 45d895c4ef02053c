"""The command line: ``icl-eval``. A command's module is imported when it is called."""

import ast
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from rich.console import Console
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from icl_eval.run_folder import RunFolderError

COMMANDS = (
    "list", "show", "run", "tune", "plot", "table", "doctor", "claims", "report", "measure", "compare", "path",
    "lm-eval", "data", "task", "mixer",
)  # fmt: skip
"""Each has a module in ``icl_eval.commands``: its docstring says what the command is for, its ``app`` is what runs."""


class Commands(TyperGroup):
    """The commands, each a stand-in with its name and description until it is called."""

    def __init__(self) -> None:
        super().__init__(
            name="icl-eval",
            help="Train matched-compute sequence models and measure what their context is worth.",
            no_args_is_help=True,
            commands={name: TyperCommand(name, help=_description(name)) for name in COMMANDS},
        )

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        assert name is not None
        return name, get_command(import_module(f"icl_eval.commands.{_module(name)}").app), rest


def main() -> None:
    """Run the command line; what the user did wrong is said in a sentence, without a traceback."""
    try:
        Commands()(prog_name="icl-eval")
    except (ValueError, TypeError, RunFolderError) as error:
        if isinstance(error, TypeError) and " has no field " not in str(error):
            raise
        Console(stderr=True).print(f"error: {error}", highlight=False, soft_wrap=True, markup=False)
        sys.exit(2)


def _description(name: str) -> str:
    """What stands in the docstring of a command's module after its name; read, not imported."""
    source = Path(__file__).with_name("commands") / f"{_module(name)}.py"
    documentation = ast.get_docstring(ast.parse(source.read_text())) or ""
    about = documentation.split("\n\n")[0].partition(": ")[2]
    return about[:1].upper() + about[1:]


def _module(name: str) -> str:
    return name.replace("-", "_")


if __name__ == "__main__":
    main()
