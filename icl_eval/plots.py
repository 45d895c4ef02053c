"""Figures, drawn from run folders alone."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from icl_eval.drawing import (
    arm_styles,
    fit_to_lines,
    legend,
    log_axis,
    new_figure,
    new_panels,
    save_figure,
    seconds_label,
    share_heights,
    spending_axis,
)
from icl_eval.experiment import Arm
from icl_eval.groups import Group, group_runs, loss_label, metric_of, panel_titles
from icl_eval.measured import Documents, MeasuredArm
from icl_eval.positions import Positions
from icl_eval.run_folder import Run
from icl_eval.statistics import Estimate, best_context_loss, curve, overall
from icl_eval.tasks import Task

ANCHOR_DASHES = ("-", (0, (5, 1)), "-.", (0, (1, 1)))


def plot_all(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Draw every figure into ``folder``; returns the files.

    Raises:
        RunFolderError: a file cannot be written.
    """
    figures: dict[str, Callable[[Sequence[Run]], Figure]] = {
        "loss_by_position.png": plot_loss_by_position,
        "score_by_state.png": plot_score_by_state,
    }
    if any(isinstance(run.arm, Arm) for run in runs):
        figures["training.png"] = plot_training
    files = []
    for name, draw in figures.items():
        save_figure(draw(runs), folder / name)
        files.append(folder / name)
    return files


def plot_loss_by_position(runs: Sequence[Run]) -> Figure:
    """Held-out loss at the end of training against position, a panel a task, with 95 % bands over documents.

    Bins that less than a tenth as many documents reach as the fullest are left out; in measured documents, than half.
    """

    def draw(ax: Axes, task: Task, groups: list[Group]) -> None:
        for group, style in zip(groups, arm_styles([group.arm for group in groups]), strict=True):
            if not group.positions:
                ax.plot([], [], label=group.label, **style)
                continue
            share = 0.5 if isinstance(task, Documents) else 0.1
            line = curve([_well_read(p, share) for p in group.positions], metric_of(task))
            ax.plot(line.center, line.estimate.value, label=group.label, **style)
            ax.fill_between(line.center, line.estimate.low, line.estimate.high, color=style["color"], alpha=0.2, lw=0)
        axis = np.arange(1, task.num_positions)
        optimum = task.optimum(axis)
        if optimum is not None:
            ax.plot(axis, optimum, color="0.3", ls="--", lw=1, label="best possible")
            ax.axhline(task.chance(), color="0.3", ls=":", lw=1, label="chance")
        fit_to_lines(ax)
        for (name, loss), dashes in zip(task.anchors(axis).items(), ANCHOR_DASHES, strict=False):
            ax.plot(axis, loss, color="0.55", ls=dashes, lw=1, label=name)
        ax.set(xlabel=task.position_label, ylabel=f"held-out loss ({loss_label(task)})")
        log_axis(ax)

    return _panels(runs, draw)


def plot_score_by_state(runs: Sequence[Run]) -> Figure:
    """The frontier: what an arm's state buys, against its bytes; a line joins the arms of one mixer and backbone,
    unless two of them have one size and so differ in something else."""

    def draw(ax: Axes, task: Task, groups: list[Group]) -> None:
        sizes = Counter((_mixer(group), group.backbone, _state_bytes(group)) for group in groups)
        unlike = {(mixer, backbone) for (mixer, backbone, _), arms in sizes.items() if arms > 1}
        families: dict[tuple[str, str], list[Group]] = {}
        for group in groups:
            family = _mixer(group), group.backbone
            families.setdefault((group.name, group.backbone) if family in unlike else family, []).append(group)
        mixers = [mixer for mixer, _ in families]
        styles = arm_styles([members[0].arm for members in families.values()])
        for (mixer, backbone), style in zip(families, styles, strict=True):
            members = families[mixer, backbone]
            name = members[0].name if len(members) == 1 else mixer
            drawn = sorted((group for group in members if group.positions), key=_state_bytes)
            value, low, high = np.array([_score(group) for group in drawn]).reshape(-1, 3).T
            ends = [group.label for group in members if group.label != group.name]
            label = ", ".join([f"{backbone} {mixer}" if mixers.count(mixer) > 1 else name, *ends])
            size = [_state_bytes(group) for group in drawn]
            ax.errorbar(size, value, yerr=[value - low, high - value], capsize=3, label=label, **style)
        _score_axis(ax, task, groups)
        ax.set_xlabel(f"state at context {task.seq_len:,} (bytes a sequence)")
        ax.margins(x=0.15)
        log_axis(ax)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _bytes(x)))

    return _panels(runs, draw)


def _mixer(group: Group) -> str:
    """What the models of a family are called: without the size of a window, say."""
    return re.sub(r"-\d+$", "", group.arm.model.label)


def _state_bytes(group: Group) -> int:
    """Bytes of the whole model's state at the task's context, in the precision that it was trained in."""
    config = group.runs[0].config
    if isinstance(group.arm, MeasuredArm):
        return config["costs"]["state_bytes"]
    return group.arm.model.state_size(group.arm.task.seq_len).bytes(2 if config["precision"] == "bf16" else 4)


def _is_recall(task: Task) -> bool:
    """Whether every scored token is certain to one who knows the context, so that the accuracy tells all."""
    optimum = task.optimum(np.arange(task.num_positions))
    return task.loss == "cross_entropy" and optimum is not None and not np.any(optimum)


def _score(group: Group, snapshot: int = -1) -> Estimate:
    """The accuracy where the ideal loss is 0, else the loss over all scored tokens where the optimum is known, else the
    best-context loss.
    """
    task, positions = group.arm.task, group.positions
    if _is_recall(task):
        return overall(positions, "accuracy", snapshot)
    if task.optimum(np.arange(1)) is not None or task.loss == "squared_error":
        return overall(positions, snapshot=snapshot)
    return best_context_loss(positions, snapshot, metric_of(task)).estimate


def _score_axis(ax: Axes, task: Task, groups: Sequence[Group]) -> None:
    """Say what the vertical axis is, and draw the best possible score where it is known and not the axis' end."""
    optimum = task.optimum(np.arange(task.num_positions))
    if _is_recall(task):
        ax.set(ylabel="held-out accuracy", ylim=(0, 1.05))
    elif optimum is None and task.loss == "cross_entropy":
        ax.set_ylabel(f"best-context loss ({loss_label(task)})")
    else:
        ax.set_ylabel(f"held-out loss ({loss_label(task)})")
        counts = [group.positions[0].count for group in groups if group.positions]
        if counts and optimum is not None:
            ax.axhline(np.average(optimum, weights=counts[0]), color="0.3", ls="--", lw=1, label="best possible")


def _bytes(size: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.3g} {unit}"


def plot_training(runs: Sequence[Run]) -> Figure:
    """The score (see :func:`plot_score_by_state`) against training FLOPs and seconds of training, a column a task."""
    tasks = group_runs(run for run in runs if isinstance(run.arm, Arm))
    titles = panel_titles(tasks)
    figure, axes = new_figure(rows=2, columns=len(tasks))
    for column, (task, groups) in zip(axes.T, tasks.items(), strict=True):
        for ax, (spent, label) in zip(
            column, (("flops", "training FLOPs (causal)"), ("seconds", seconds_label(runs))), strict=True
        ):
            for group, style in zip(groups, arm_styles([group.arm for group in groups]), strict=True):
                positions = group.positions
                points = [_score(group, k) for k in range(len(positions[0].step) if positions else 0)]
                value, low, high = np.array(points).reshape(-1, 3).T
                x = np.mean([getattr(p, spent) for p in positions], axis=0) if points else []
                ax.plot(x, value, label=group.label, **style)
                ax.fill_between(x, low, high, color=style["color"], alpha=0.2, lw=0)
            _score_axis(ax, task, groups)
            if not _is_recall(task):
                fit_to_lines(ax)
            ax.set_xlabel(label)
            spending_axis(ax)
        column[0].set_title(titles[task])
        legend(column[0])
    for row in axes:
        _share_heights(tasks, row)
    return figure


def _panels(runs: Sequence[Run], draw: Callable[[Axes, Task, list[Group]], None]) -> Figure:
    tasks = group_runs(runs)
    titles = panel_titles(tasks)
    figure, axes = new_panels(len(tasks))
    for ax, (task, groups) in zip(axes, tasks.items(), strict=True):
        draw(ax, task, groups)
        ax.set_title(titles[task])
        legend(ax)
    _share_heights(tasks, axes)
    return figure


def _share_heights(tasks: Iterable[Task], axes: Iterable[Axes]) -> None:
    """One vertical range for the panels of a task at several contexts."""
    panels: dict[tuple[str, str], list[Axes]] = {}
    for task, ax in zip(tasks, axes, strict=True):
        panels.setdefault((task.name, loss_label(task)), []).append(ax)
    for same in panels.values():
        share_heights(same)


def _well_read(positions: Positions, share: float) -> Positions:
    """Without the bins that only few documents reach, less than a share of those that reach the fullest: texts end
    after unequal numbers of tokens, and some distances are rare."""
    reached = (positions.document_count > 0).mean(axis=0)
    kept = reached >= share * reached.max()
    size = positions.document_bytes
    return replace(
        positions,
        document_count=positions.document_count * kept,
        document_bytes=None if size is None else size * kept,
    )
