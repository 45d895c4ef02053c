"""What measured models make of their context, a table for each axis."""

from collections.abc import Iterator, Sequence

from rich.table import Table

from icl_eval.context_use import SMALLEST_GAIN, extrapolation, fall_per_octave, useful_context
from icl_eval.groups import Group, group_runs, loss_label
from icl_eval.measured import Documents
from icl_eval.positions import Positions
from icl_eval.run_folder import Run
from icl_eval.statistics import Estimate, Metric, best_context_loss, icl_gain
from icl_eval.tables import bin_label, new_table

LEGEND = (
    f"Useful context: where the loss last exceeds the best-context loss by more than {SMALLEST_GAIN}, and between "
    "which positions that is certain and possible (simultaneous over positions)."
)
EARLY = 32
"""Position from which in-context learning's gain is counted, in longer contexts."""


def measured_tables(runs: Sequence[Run]) -> list[Table]:
    """A table an axis: best-context loss, useful context, gain, slope, and what lies beyond the training context."""
    tables = []
    for title, header, rows in measured_rows(runs):
        table = new_table(*header)
        for row in rows:
            table.add_row(*row)
        table.title, table.title_justify = title, "left"
        tables.append(table)
    return tables


def measured_rows(runs: Sequence[Run]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Title, header and rows of each table."""
    for task, groups in group_runs(runs).items():
        if not isinstance(task, Documents):
            continue
        early = min(EARLY, max(task.seq_len // 8, 1))
        header = [
            "model",
            "bytes/\ntoken",
            "trained on\n(tokens)",
            "state\nelements",
            f"best-context loss\n({loss_label(task)})",
            "at",
            f"useful context\n({task.unit})",
            f"gain from {early}\nto best",
            "fall\nper octave",
            "lost beyond\ntraining",
        ]
        title = f"context seen in {task.unit}, up to {task.seq_len:,}"
        yield title, header, [_row(task, group, early) for group in groups]


def _row(task: Documents, group: Group, early: int) -> list[str]:
    runs, metric, config = group.positions, task.metric, group.runs[0].config
    best = best_context_loss(runs, metric=metric)
    reach = useful_context(runs, metric)
    trained = config["trained_context"]
    beyond = None
    if trained is not None and (task.unit == "tokens" or config["bytes_per_token"] == 1):
        beyond = extrapolation(runs, trained, metric)
    return [
        group.label,
        f"{config['bytes_per_token']:.2f}",
        "-" if trained is None else f"{trained:,}",
        f"{config['costs']['state_elements']['mathematical']:,}",
        _cell(best.estimate),
        bin_label(best.start, best.end),
        "-" if reach is None else f"{reach.value:,} [{reach.low:,}, {reach.high:,}]",
        "-" if best.end <= early else _cell(icl_gain(runs, early, metric)),
        _cell(_fall(runs, early, task.seq_len, metric)),
        _cell(beyond),
    ]


def _fall(runs: Sequence[Positions], early: int, last: int, metric: Metric) -> Estimate | None:
    try:
        return fall_per_octave(runs, early, last, metric)
    except ValueError:
        return None


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else "{:.3f} [{:.3f}, {:.3f}]".format(*estimate)
