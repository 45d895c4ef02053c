"""Runs by task and arm, and what they are called and compared by in tables and figures."""

from collections.abc import Iterable
from itertools import groupby
from typing import NamedTuple

from icl_eval.experiment import Arm
from icl_eval.measured import Documents, MeasuredArm
from icl_eval.positions import Positions
from icl_eval.run_folder import Run
from icl_eval.statistics import Metric
from icl_eval.tasks import Task


class Group(NamedTuple):
    """The runs of one arm, one a seed; those that diverged are counted, not drawn. Named by model, or by arm where
    models share a name or there is but one; what the names of all the task's arms begin with, as in ``mqar-power``, is
    left out. Arms of several experiments that share even that are told apart by their experiments' folders.
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
    def backbone(self) -> str:
        """The backbone's name; empty where nothing was trained here."""
        return "" if isinstance(self.arm, MeasuredArm) else type(self.arm.model.backbone).__name__.lower()

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
        shared = [name for name in names if names.count(name) > 1 or len(names) == 1]
        groups[:] = [g._replace(name=g.arm.name.removeprefix(kind)) if g.name in shared else g for g in groups]
        names = [group.name for group in groups]
        groups[:] = [g._replace(name=f"{g.name}, {g.folder}") if names.count(g.name) > 1 else g for g in groups]
    return tasks


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


def metric_of(task: Task) -> Metric:
    """What models are compared by: the loss, or bits per byte where they read one text with any tokenisers."""
    return task.metric if isinstance(task, Documents) else "nll"


def loss_label(task: Task) -> str:
    """What losses are in."""
    return "bits per byte" if metric_of(task) == "bits_per_byte" else f"{task.loss_unit} per scored token"
