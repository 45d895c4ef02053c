"""Figures of the paper's comparisons: losses at the ends of branches, curves through training, paired differences."""

import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from icl_eval.comparison import compare
from icl_eval.drawing import (
    arm_styles,
    fit_to_lines,
    legend,
    log_axis,
    new_figure,
    new_panels,
    seconds_label,
    spending_axis,
)
from icl_eval.evidence import ArmRuns, Evidence, MissingEvidenceError, Spent
from icl_eval.gates import DECIDING_SCALES
from icl_eval.groups import panel_titles
from icl_eval.run_folder import write_atomically
from icl_eval.statistics import Estimate, curve, estimate
from icl_eval.studies import Study
from icl_eval.tasks import Task

CAPTIONS = {
    "end_points": "Best-context loss of finished models (ends of decay branches) against training FLOPs (causal) "
    "and against seconds of training, and the in-context learning curve at the end, from a 256th of the context on. "
    "Bands: 95 %, documents and seeds, of each arm by itself: differences are paired, and narrower.",
    "through_training": "In-context learning curves of each arm at its branch ends: the later, the darker.",
    "differences": "Loss of each arm less the reference's by position, at the end, paired over documents and seeds: "
    "above zero the reference is better. Bands: 95 % for all positions and arms of a panel at once; of a lone seed "
    "over documents alone.",
}
"""Figures, by the stem of their file."""
FIRST_SHARE = 256
"""A curve at the end begins at this part of the context: before, losses fall by more than arms differ by later."""


def plot_study(study: Study, folder: Path) -> dict[str, Path]:
    """Draw the figures of an experiment's runs into a folder; returns their files by name.

    A figure that lacks evidence (every run of an arm diverged, say) is left out.
    """
    files = {}
    for name, draw in (
        ("end_points", plot_end_points),
        ("through_training", plot_through_training),
        ("differences", plot_differences),
    ):
        try:
            figure = draw(study)
        except MissingEvidenceError:
            continue
        if study.scale not in DECIDING_SCALES:
            figure.suptitle(f"{study.scale or 'no'} scale: shows that it runs, decides nothing", color="#B00000")
        files[name] = folder / f"{study.key}-{name}.png"
        write_atomically(files[name], _png(figure))
    return files


def _png(figure: Figure) -> bytes:
    """The figure, which is closed, in 256 colours: a third of the size, for reports that hold many in one file."""
    drawn, image = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=150, format="png")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(image, "PNG", optimize=True)
    return image.getvalue()


def plot_end_points(study: Study) -> Figure:
    """Best-context loss at branch ends against FLOPs and seconds, and the curves at the end."""
    rows = _rows(study)
    figure, axes = new_figure(rows=len(rows), columns=3)
    for row, arms in zip(axes, rows, strict=True):
        evidence = Evidence(arms)
        seconds = seconds_label(run for arm in arms for run in arm.runs)
        spends: tuple[tuple[Spent, str], ...] = (("flops", "training FLOPs (causal)"), ("seconds", seconds))
        for ax, (unit, label) in zip(row, spends, strict=False):
            for arm, style in zip(arms, _styles(arms), strict=True):
                points = [estimate(evidence.best(arm, end)) for end in arm.ends]
                x = arm.spent(unit)[[arm.snapshot(end) for end in arm.ends]]
                value, low, high = (np.array(bound) for bound in zip(*points, strict=True))
                _band(ax, x, Estimate(value, low, high), style)
            ax.set(xlabel=label, ylabel=f"best-context loss ({evidence.unit})")
            spending_axis(ax)
        for arm, style in zip(arms, _styles(arms), strict=True):
            line = curve(arm.positions)
            late = line.start >= arm.context // FIRST_SHARE
            _band(row[2], line.center[late], Estimate(*(bound[late] for bound in line.estimate)), style)
        row[2].set(xlabel="position (tokens)", ylabel=f"held-out loss ({evidence.unit_by_position})")
        log_axis(row[2])
        titles = panel_titles(dict.fromkeys(arm.arm.task for arm in arms)).values()
        row[0].set_title(f"{next(iter(titles))} ({study.domain})" if len(titles) == 1 else study.domain)
        legend(row[0])
    return figure


def plot_through_training(study: Study) -> Figure:
    """In-context learning curves at the ends of branches, a panel an arm, arms of a row on one scale."""
    rows = _rows(study)
    figure, axes = new_figure(rows=len(rows), columns=max(map(len, rows)))
    for row, arms in zip(axes, rows, strict=True):
        limits, unit = [], Evidence(arms).unit_by_position
        for ax, arm, style in zip(row, arms, _styles(arms), strict=False):
            shades = np.linspace(0.35, 1.0, len(arm.ends))
            for end, shade in zip(arm.ends, shades, strict=True):
                line = curve(arm.positions, snapshot=arm.snapshot(end))
                shaded = {
                    **style,
                    "alpha": shade,
                    "label": f"{end:g} of {arm.spent('flops')[-1]:.2g} FLOPs",
                    "marker": "",
                }
                ax.plot(line.center, line.estimate.value, **shaded)
                limits.append(line.estimate.value[line.end >= 4])
            ax.set(xlabel="position (tokens)", ylabel=f"held-out loss ({unit})", title=f"{arm.name}, {arm.context:,}")
            log_axis(ax)
            legend(ax)
        low, high = (f(np.concatenate(limits)) for f in (np.min, np.max))
        for ax in row[: len(arms)]:
            ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        for ax in row[len(arms) :]:
            ax.set_axis_off()
    return figure


def plot_differences(study: Study) -> Figure:
    """Paired differences by position from a reference arm, which is power, or softmax, or the last; a panel a task."""
    rows = [arms for arms in _rows(study, most=0) if len(arms) > 1]
    if not rows:
        raise MissingEvidenceError("no task has two arms")
    figure, axes = new_panels(len(rows))
    for ax, arms in zip(axes, rows, strict=True):
        reference = _reference(arms)
        styles = dict(zip((arm.name for arm in arms), _styles(arms), strict=True))
        pairs = [(arm.name, reference.name) for arm in arms if arm is not reference]
        for first, second, line in compare({arm.name: arm.positions for arm in arms}, pairs=pairs):
            _band(ax, line.center, line.estimate, {**styles[first], "label": f"{first} - {second}"})
        ax.axhline(0, color="black", lw=0.8)
        fit_to_lines(ax)
        ax.set(xlabel="position (tokens)", ylabel=f"difference of loss ({Evidence(arms).unit_by_position})")
        ax.set_title(panel_titles([arms[0].arm.task])[arms[0].arm.task])
        log_axis(ax)
        legend(ax)
    return figure


def _rows(study: Study, most: int = 4) -> list[tuple[ArmRuns, ...]]:
    """The arms by backbone, and by task as well where they are more than ``most``; those that diverged are left out."""
    rows: dict[tuple[str, Task | None], list[ArmRuns]] = {}
    arms = [arm for arm in study.paired if arm.runs and not any(run.diverged for run in arm.runs)]
    sizes = Counter(arm.backbone for arm in arms)
    for arm in arms:
        rows.setdefault((arm.backbone, arm.arm.task if sizes[arm.backbone] > most else None), []).append(arm)
    if not rows:
        raise MissingEvidenceError("every arm diverged")
    return [tuple(row) for row in rows.values()]


def _reference(arms: Sequence[ArmRuns]) -> ArmRuns:
    by_mixer = {arm.mixer: arm for arm in reversed(arms)}
    return by_mixer.get("power") or by_mixer.get("softmax") or arms[-1]


def _styles(arms: Sequence[ArmRuns]) -> list[dict]:
    return [{**style, "label": arm.name} for arm, style in zip(arms, arm_styles([a.arm for a in arms]), strict=True)]


def _band(ax: Axes, x: np.ndarray, y: Estimate, style: dict) -> None:
    ax.plot(x, y.value, **style)
    ax.fill_between(x, y.low, y.high, color=style["color"], alpha=0.2, lw=0)
