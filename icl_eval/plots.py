"""Figures, drawn from run folders alone."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from icl_eval.experiment import Arm
from icl_eval.measured import Documents, MeasuredArm
from icl_eval.models import ModelConfig
from icl_eval.positions import Positions
from icl_eval.run_folder import Run, RunFolderError
from icl_eval.statistics import Estimate, Metric, best_context_loss, curve, overall
from icl_eval.tasks import Task

# Okabe and Ito's palette, told apart with any colour vision; a mixer keeps its colour in every figure.
_COLORS = {"softmax": "#0072B2", "power": "#D55E00", "window": "#009E73", "linear": "#CC79A7"}
_COLORS |= {"rwkv7": "#E69F00", "gated_deltanet": "#56B4E9", "mamba2": "#000000", "gla": "#7F7F7F"}
_COLORS |= {"deltanet": "#8C6D31"}
_MARKERS = {"softmax": "o", "power": "s", "window": "^", "linear": "D"}
_MARKERS |= {"rwkv7": "P", "gated_deltanet": "X", "mamba2": "p", "gla": "<", "deltanet": ">"}
ANCHOR_DASHES = ("-", (0, (5, 1)), "-.", (0, (1, 1)))
_OTHERS = ("#E69F00", "#56B4E9", "#000000", "#999933")


class Group(NamedTuple):
    """The runs of one arm, one a seed; those that diverged are counted, not drawn. Named by model, or by arm where
    models share a name; what the names of all the task's arms begin with, as in ``mqar-power``, is left out. Arms of
    several experiments that share even that are told apart by their experiments' folders.
    """

    arm: Arm | MeasuredArm
    runs: list[Run]
    name: str

    @property
    def positions(self) -> list[Positions]:
        return [run.positions for run in self.runs if run.positions is not None and not run.diverged]

    @property
    def folder(self) -> str:
        """The name of the experiment's folder."""
        return self.runs[0].path.parents[2 if isinstance(self.arm, MeasuredArm) else 1].name

    @property
    def label(self) -> str:
        """The model's name, and how its runs ended if not well."""
        diverged = [run.status["step"] for run in self.runs if run.diverged]
        return self.name + (f" (NaN at step {diverged[0]})" if diverged else "")


def group_runs(runs: Iterable[Run]) -> dict[Task, list[Group]]:
    """Arms by task, in the order of the runs."""
    tasks: dict[Task, list[Group]] = {}
    for _, same in groupby(runs, key=lambda run: (run.path.parent, run.name)):
        members = list(same)
        arm = members[0].arm
        name = arm.model.label if isinstance(arm, Arm) else arm.name
        tasks.setdefault(arm.task, []).append(Group(arm, members, name))
    for groups in tasks.values():
        names = [group.name for group in groups]
        kind = groups[0].arm.name.split("-")[0] + "-"
        if len(set(names)) == 1 or not all(group.arm.name.startswith(kind) for group in groups):
            kind = ""
        groups[:] = [g._replace(name=g.arm.name.removeprefix(kind)) if names.count(g.name) > 1 else g for g in groups]
        names = [group.name for group in groups]
        groups[:] = [g._replace(name=f"{g.name}, {g.folder}") if names.count(g.name) > 1 else g for g in groups]
    return tasks


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


def save_figure(figure: Figure, file: Path) -> None:
    """Write a figure and close it.

    Raises:
        RunFolderError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
    except OSError as error:
        raise RunFolderError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        plt.close(figure)


def plot_loss_by_position(runs: Sequence[Run]) -> Figure:
    """Held-out loss at the end of training against position, a panel a task, with 95 % bands over documents.

    Bins that less than a tenth as many documents reach as the fullest are left out; in measured documents, than half.
    """

    def draw(ax: Axes, task: Task, groups: list[Group]) -> None:
        for group, style in zip(groups, arm_styles(groups), strict=True):
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
    """The frontier: what an arm's state buys, against its bytes; a line joins the arms of one mixer."""

    def draw(ax: Axes, task: Task, groups: list[Group]) -> None:
        families: dict[str, list[Group]] = {}
        for group in groups:
            families.setdefault(re.sub(r"-\d+$", "", group.arm.model.label), []).append(group)
        for members, style in zip(families.values(), arm_styles([m[0] for m in families.values()]), strict=True):
            drawn = sorted((group for group in members if group.positions), key=_state_bytes)
            value, low, high = np.array([_score(group) for group in drawn]).reshape(-1, 3).T
            ends = [group.label for group in members if group.label != group.name]
            label = ", ".join([_family_label(members), *ends])
            size = [_state_bytes(group) for group in drawn]
            ax.errorbar(size, value, yerr=[value - low, high - value], capsize=3, label=label, **style)
        _score_axis(ax, task, groups)
        ax.set_xlabel(f"state at context {task.seq_len:,} (bytes a sequence)")
        ax.margins(x=0.15)
        log_axis(ax)
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _bytes(x)))

    return _panels(runs, draw)


def _family_label(members: Sequence[Group]) -> str:
    return members[0].name if len(members) == 1 else re.sub(r"-\d+$", "", members[0].arm.model.label)


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
            column, (("flops", "training FLOPs"), ("seconds", "training time (s)")), strict=True
        ):
            for group, style in zip(groups, arm_styles(groups), strict=True):
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
            log_axis(ax, base=10)
            ax.xaxis.set_minor_formatter(NullFormatter())
        column[0].set_title(titles[task])
        for ax in column:
            if ax.get_xscale() == "log":
                ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        if column[1].get_xscale() == "log":
            column[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))
        column[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: re.sub(r"e\+0?", "e", f"{x:.3g}")))
        legend(column[0])
    return figure


def _panels(runs: Sequence[Run], draw: Callable[[Axes, Task, list[Group]], None]) -> Figure:
    tasks = group_runs(runs)
    titles = panel_titles(tasks)
    figure, axes = new_panels(len(tasks))
    for ax, (task, groups) in zip(axes, tasks.items(), strict=True):
        draw(ax, task, groups)
        ax.set_title(titles[task])
        legend(ax)
    return figure


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


def metric_of(task: Task) -> Metric:
    """What models are compared by: the loss, or bits per byte where they read one text with any tokenisers."""
    return task.metric if isinstance(task, Documents) else "nll"


def loss_label(task: Task) -> str:
    """What losses are in."""
    return "bits per byte" if metric_of(task) == "bits_per_byte" else f"{task.loss_unit} per scored token"


def new_figure(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """A figure in the house's style, and its axes ``[rows, columns]``."""
    import seaborn as sns

    mpl.use("Agg")
    sns.set_theme(style="ticks", context="notebook", rc={"axes.grid": True, "grid.alpha": 0.35, "axes.titlesize": 12})
    return plt.subplots(rows, columns, figsize=(6.4 * columns, 4.6 * rows), squeeze=False, layout="constrained")


def new_panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` panels: in one row up to three, in two rows beyond."""
    columns = count if count <= 3 else -(-count // 2)
    figure, axes = new_figure(rows=-(-count // columns), columns=columns)
    for unused in axes.flat[count:]:
        unused.remove()
    return figure, list(axes.flat[:count])


def panel_titles(tasks: Iterable[Task]) -> dict[Task, str]:
    """Name and context of each task, and the fields in which it differs from its namesakes."""
    known = list(tasks)
    titles: dict[Task, str] = {}
    for task in known:
        if isinstance(task, Documents):
            titles[task] = f"documents, context up to {task.seq_len:,} {task.unit}"
            continue
        fields = task.to_dict()
        namesakes = [other.to_dict() for other in known if type(other) is type(task) and other.seq_len == task.seq_len]
        differing = [f"{name} {value}" for name, value in fields.items() if any(o[name] != value for o in namesakes)]
        titles[task] = ", ".join([task.name, f"context {task.seq_len:,}", *differing])
    return titles


def arm_styles(groups: Sequence[Group]) -> list[dict]:
    """Colour and marker of each arm; an arm whose mixer another has taken in this panel keeps the colour, dashed."""
    styles: list[dict] = []
    taken: list[str] = []
    for group in groups:
        model = group.arm.model
        mixer = model.mixers[0].name if isinstance(model, ModelConfig) else model.label
        color = _COLORS.get(mixer, _OTHERS[crc32(mixer.encode()) % len(_OTHERS)])
        dashes = ("-", "--", "-.", ":")[taken.count(mixer) % 4]
        styles.append({"color": color, "marker": _MARKERS.get(mixer, "v"), "ls": dashes, "ms": 5, "lw": 1.6})
        taken.append(mixer)
    return styles


def log_axis(ax: Axes, base: int = 2) -> None:
    """Make the horizontal axis logarithmic, with plain numbers for base 2."""
    ax.spines[["top", "right"]].set_visible(False)
    if not np.isfinite(ax.dataLim.minposx):
        return
    ax.set_xscale("log", base=base)
    if base == 2:
        low, high = ax.get_xlim()
        narrow = (1, 1.25, 1.5, 1.75) if high < 4 * low else (1,)
        ax.xaxis.set_major_locator(LogLocator(base=2, subs=narrow, numticks=9))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())


def fit_to_lines(ax: Axes) -> None:
    """Let the vertical axis show the lines so far; bands that reach further, as those of few seeds may, are cut."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if values.size:
        margin = 0.06 * np.ptp(values) or 0.5
        ax.set_ylim(values.min() - margin, values.max() + margin)


def legend(ax: Axes) -> None:
    """The legend, without a frame; beside the panel where it is long."""
    if len(ax.get_legend_handles_labels()[1]) > 6:
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.legend(frameon=False, fontsize=9)
