"""``icl-eval compare``: paired differences between runs, by position."""

from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from icl_eval.commands.options import RunsArgument, UsersFileOption
from icl_eval.comparison import Difference
from icl_eval.comparison import compare as compare_arms
from icl_eval.config import lookup
from icl_eval.drawing import fit_to_lines, legend, log_axis, new_panels, save_figure
from icl_eval.groups import Group, group_runs, loss_label, metric_of, panel_titles
from icl_eval.presets import load_preset
from icl_eval.printing import new_console, print_table
from icl_eval.run_folder import RunFolderError, load_runs
from icl_eval.tables import bin_label, new_table
from icl_eval.tasks import Task

app = typer.Typer(add_completion=False)


@app.command()
def compare(
    runs: RunsArgument,
    baseline: Annotated[
        str | None,
        typer.Option(help="Arm that all others are compared with; every pair of one backbone if not given."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the figure; RUN if it is one, comparison/ if there are several.")
    ] = None,
    preset: UsersFileOption = None,
) -> None:
    """Paired differences of loss by position, between arms measured on the same documents: a table and a figure.

    Intervals hold with 95 % for all positions of all pairs of a task at once (max-|t| bootstrap over documents, seeds
    nested, their variances pooled over neighbouring positions), so however many are looked at, the chance of any false
    difference is 5 %. Arms are compared on the seeds
    that all of them finished, where there are any.
    """
    if preset is not None:
        load_preset(preset)
    groups = {task: _on_common_seeds(arms) for task, arms in group_runs(load_runs(runs)).items()}
    found = {task: {group.label: group.positions for group in arms} for task, arms in groups.items()}
    if baseline is not None:
        lookup({name: task for task, arms in found.items() for name in arms}, baseline, "arm")
    compared: dict[Task, list[Difference]] = {
        task: compare_arms(arms, metric_of(task), _pairs(groups[task], baseline))
        for task, arms in found.items()
        if len(arms) > 1 and (baseline is None or baseline in arms)
    }
    if not compared:
        raise RunFolderError("nothing to compare: no two arms were measured on the same task")
    console = new_console()
    titles = panel_titles(compared)
    for task, differences in compared.items():
        seeds = sorted({run.seed for group in groups[task] for run in group.runs})
        console.print(f"\n[bold]{titles[task]}[/bold], {loss_label(task)}, seed {', '.join(map(str, seeds))}")
        print_table(console, _rows(task, differences))
    console.print(
        "Intervals and stars hold with 95 % for all positions of all pairs of a task at once (max-|t| bootstrap over "
        "documents, seeds nested, whose variances are pooled over neighbouring positions).",
        highlight=False,
    )
    folder = out or (runs[0] if len(runs) == 1 else Path("comparison"))
    folder.mkdir(parents=True, exist_ok=True)
    console.print(f"figure: {_draw(compared, folder / 'differences.png')}", highlight=False)


def _pairs(groups: list[Group], baseline: str | None) -> list[tuple[str, str]]:
    """Labels of the arms to be compared: with the baseline, or in one backbone, or all where none share theirs."""
    if baseline is not None:
        return [(group.label, baseline) for group in groups if group.label != baseline]
    pairs = list(combinations(groups, 2))
    alike = [pair for pair in pairs if pair[0].backbone == pair[1].backbone]
    return [(one.label, other.label) for one, other in alike or pairs]


def _on_common_seeds(groups: list[Group]) -> list[Group]:
    """The measured arms, on the seeds that all of them have: one arm's further seeds would differ by their own luck."""
    groups = [group for group in groups if group.positions]
    finished = [{run.seed for run in group.runs if not run.diverged} for group in groups]
    common = set.intersection(*finished) if finished else set()
    if not common:
        return groups
    return [group._replace(runs=[run for run in group.runs if run.seed in common]) for group in groups]


def _rows(task: Task, differences: list[Difference]) -> Table:
    curve = differences[0].curve
    table = new_table(task.position_label, *(f"{d.first}\n- {d.second}" for d in differences))
    for bin, (start, end) in enumerate(zip(curve.start, curve.end, strict=True)):
        cells = []
        for difference in differences:
            value, low, high = (bound[bin] for bound in difference.curve.estimate)
            star = " *" if difference.verdicts[bin] else "  "
            cells.append(f"{value:+.3f} [{low:+.3f}, {high:+.3f}]{star}")
        table.add_row(bin_label(start, end), *cells)
    return table


def _draw(compared: dict[Task, list[Difference]], file: Path) -> Path:
    titles = panel_titles(compared)
    figure, axes = new_panels(len(compared))
    for ax, (task, differences) in zip(axes, compared.items(), strict=True):
        for number, difference in enumerate(differences):
            curve, color = difference.curve, f"C{number}"
            ax.plot(curve.center, curve.estimate.value, color=color, label=f"{difference.first} - {difference.second}")
            ax.fill_between(curve.center, curve.estimate.low, curve.estimate.high, color=color, alpha=0.2, lw=0)
        ax.axhline(0, color="0.3", lw=1)
        ax.set(title=titles[task], xlabel=task.position_label, ylabel=f"difference of loss ({loss_label(task)})")
        log_axis(ax)
        fit_to_lines(ax)
        legend(ax)
    save_figure(figure, file)
    return file
