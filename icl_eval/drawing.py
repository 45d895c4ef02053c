"""The house's style of figures: sizes, colours, axes, legends, and how they are written."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from zlib import crc32

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from icl_eval.experiment import Arm
from icl_eval.measured import MeasuredArm
from icl_eval.models import ModelConfig
from icl_eval.run_folder import Run, RunFolderError

# Okabe and Ito's palette, told apart with any colour vision; a mixer keeps its colour in every figure.
_COLORS = {"softmax": "#0072B2", "power": "#D55E00", "window": "#009E73", "linear": "#CC79A7"}
_COLORS |= {"rwkv7": "#E69F00", "gated_deltanet": "#56B4E9", "mamba2": "#000000", "gla": "#7F7F7F"}
_COLORS |= {"deltanet": "#8C6D31"}
_MARKERS = {"softmax": "o", "power": "s", "window": "^", "linear": "D"}
_MARKERS |= {"rwkv7": "P", "gated_deltanet": "X", "mamba2": "p", "gla": "<", "deltanet": ">"}
_AGAIN: tuple[dict[str, str], ...] = (
    {"ls": "-"},
    {"ls": "--", "mfc": "white"},
    {"ls": "-.", "fillstyle": "left"},
    {"ls": ":", "fillstyle": "bottom"},
)
_OTHERS = ("#E69F00", "#56B4E9", "#000000", "#999933")


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


def arm_styles(arms: Sequence[Arm | MeasuredArm]) -> list[dict]:
    """Colour and marker of each arm; an arm whose mixer another has taken in this panel keeps the colour, dashed and
    with its marker filled otherwise, since dashes do not show on a single point.
    """
    styles: list[dict] = []
    taken: list[str] = []
    for arm in arms:
        model = arm.model
        mixer = model.mixers[0].name if isinstance(model, ModelConfig) else model.label
        color = _COLORS.get(mixer, _OTHERS[crc32(mixer.encode()) % len(_OTHERS)])
        again = _AGAIN[taken.count(mixer) % len(_AGAIN)]
        styles.append(
            {"color": color, "marker": _MARKERS.get(mixer, "v"), "ms": 5, "mfcalt": "white", "lw": 1.6, **again}
        )
        taken.append(mixer)
    return styles


def log_axis(ax: Axes) -> None:
    """Make the horizontal axis logarithmic in powers of two, with plain numbers."""
    if _made_logarithmic(ax, 2):
        low, high = ax.get_xlim()
        narrow = (1, 1.25, 1.5, 1.75) if high < 4 * low else (1,)
        ax.xaxis.set_major_locator(LogLocator(base=2, subs=narrow, numticks=9))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))


def spending_axis(ax: Axes) -> None:
    """Make the horizontal axis logarithmic, of seconds or FLOPs: ticks at 1, 2 and 5, as 200 or 2e16."""
    if _made_logarithmic(ax, 10):
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: re.sub(r"e\+0?", "e", f"{x:,g}")))


def _made_logarithmic(ax: Axes, base: int) -> bool:
    """Without minor labels; not where there is nothing to show."""
    ax.spines[["top", "right"]].set_visible(False)
    if not np.isfinite(ax.dataLim.minposx):
        return False
    ax.set_xscale("log", base=base)
    ax.xaxis.set_minor_formatter(NullFormatter())
    return True


def fit_to_lines(ax: Axes) -> None:
    """Let the vertical axis show the lines so far; bands that reach further, as those of few seeds may, are cut."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines] or [np.empty(0)])
    values = values[np.isfinite(values)]
    if values.size:
        margin = 0.06 * np.ptp(values) or 0.5
        ax.set_ylim(values.min() - margin, values.max() + margin)


def share_heights(panels: Sequence[Axes]) -> None:
    """Give panels whose curves are to be compared one vertical range: all that any of them shows."""
    low, high = np.array([ax.get_ylim() for ax in panels]).T
    for ax in panels:
        ax.set_ylim(low.min(), high.max())


def legend(ax: Axes) -> None:
    """The legend, without a frame; beside the panel where it is long."""
    if len(ax.get_legend_handles_labels()[1]) > 6:
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        ax.legend(frameon=False, fontsize=9)


def seconds_label(runs: Iterable[Run]) -> str:
    """Label of an axis of seconds of training, which says so if runs shared their device."""
    most = max(run.runs_per_device for run in runs)
    return "training time (s)" if most == 1 else f"training time (s), up to {most} runs sharing a device"
