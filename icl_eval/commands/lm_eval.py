"""``icl-eval lm-eval``: the command line of lm-eval, with the model of a run folder."""

import difflib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from icl_eval.commands.path import LM_EVAL_TASKS

app = typer.Typer(add_completion=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def lm_eval(
    context: typer.Context,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder whose model is evaluated.")],
    preset: Annotated[str | None, typer.Option(help="Your file, where the run uses tasks or mixers of yours.")] = None,
) -> None:
    """Evaluate the model of a run folder with lm-eval; all other options are lm-eval's own (--tasks, --limit, …).

    Answers are kept in the run folder: killed, the same command goes on where it stopped. Our own tasks are found
    without --include_path.
    """
    from lm_eval._cli import HarnessCLI
    from lm_eval.utils import setup_logging

    options = context.args
    if any(option.split("=")[0] in ("--model", "-M") for option in options):
        raise ValueError("--model: the model is that of the run folder; leave the option out")
    arguments = {"run": str(run), **({} if preset is None else {"preset": preset})}
    sys.argv = ["lm-eval", "run", "--model", "icl-eval", "--model_args", json.dumps(arguments), *options]
    setup_logging()
    harness = HarnessCLI()
    parsed = harness.parse_args()
    parsed.include_path = parsed.include_path or str(LM_EVAL_TASKS)
    parsed.device = parsed.device or "auto"
    parsed.batch_size = getattr(parsed, "batch_size", "auto")
    try:
        harness.execute(parsed)
    except ValueError as error:
        missing = str(error).removeprefix("Tasks not found: ")
        if missing == str(error):
            raise
        raise ValueError(_unknown_tasks(missing.split(", "), parsed.include_path)) from None


def _unknown_tasks(names: list[str], include_path: str) -> str:
    from lm_eval.tasks import TaskManager

    known = TaskManager(include_path=include_path).all_tasks
    guesses = {name: difflib.get_close_matches(name, known, n=1, cutoff=0.5) for name in names}
    hints = [f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else "") for name, close in guesses.items()]
    return f"unknown task {', '.join(hints)}; `lm-eval ls tasks` lists lm-eval's own, and ours lie in {LM_EVAL_TASKS}"
