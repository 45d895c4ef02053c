"""``icl-eval show``: a preset's arms, matched budgets and GPU minutes, without training."""

from typing import Annotated

import typer
from rich.console import Console

from icl_eval.commands.options import PresetArgument, ScaleOption, TextOption
from icl_eval.experiment import Untrained
from icl_eval.minutes import ASSUMPTION, total_minutes
from icl_eval.presets import define_preset, on_text
from icl_eval.printing import new_console, print_table
from icl_eval.tables import matches, plan_table, starts, states_needed

app = typer.Typer(add_completion=False)


@app.command()
def show(
    preset: PresetArgument,
    scale: ScaleOption = None,
    text: TextOption = None,
    config: Annotated[bool, typer.Option("--config", help="The resolved configuration instead, as JSON.")] = False,
) -> None:
    """Print a preset's arms, matched budgets and GPU minutes, or its resolved configuration, without training."""
    console = new_console()
    experiment = define_preset(preset, scale)
    if isinstance(experiment, Untrained):
        return show_untrained(console, experiment)
    if text is not None:
        experiment = on_text(experiment, text)
    if config:
        return console.print_json(data=experiment.to_dict())
    console.print(f"{experiment.question}\n", highlight=False)
    print_table(console, plan_table(experiment))
    for sentence in (*matches(experiment), *starts(experiment), *states_needed(experiment)):
        console.print(sentence, highlight=False)
    console.print(f"\nabout {total_minutes(experiment):,.1f} GPU minutes a seed ({ASSUMPTION})", highlight=False)
    return None


def show_untrained(console: Console, preset: Untrained) -> None:
    """Print the question of a preset with nothing to train, and the commands that answer it."""
    console.print(f"\n{preset.question}\n\nNothing to train; its answer comes from", highlight=False)
    for command in preset.commands:
        console.print(f"  {command}", highlight=False)
