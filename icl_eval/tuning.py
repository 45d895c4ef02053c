"""Learning rates by equal trials: a grid for every arm at a share of its budget, and a ledger of what came out."""

import fcntl
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from icl_eval.experiment import Arm, Experiment
from icl_eval.launch import run_here
from icl_eval.run_folder import RunFolderError, load_runs, to_json, write_atomically
from icl_eval.statistics import overall
from icl_eval.tasks import Task, TextTask

GRID = (0.5, 1.0, 2.0, 4.0)
"""Rates tried first, as multiples of the arm's own."""
MAX_EXTENSIONS = 4
"""How often a grid is extended by a factor of 2 while its best rate lies at an edge."""
_NOT_LEARNED_FROM = (
    "learning_rate", "final_learning_rate", "max_skipped_steps", "micro_batch_size", "activation_checkpointing",
    "compile", "branches",
)  # fmt: skip
_START = ("start_context", "start_tokens", "start_batch_size")
Launch = Callable[[Experiment, Path], tuple[Path, dict[str, str]]]
"""Runs an experiment below a folder; gives the experiment's folder, and what went wrong with which run."""


class Grid(NamedTuple):
    """All that was tried for one arm at one budget.

    Attributes:
        tries: entries of the ledger, by rising ``learning_rate``.
    """

    tries: Sequence[dict[str, Any]]

    @property
    def rates(self) -> list[float]:
        return [entry["learning_rate"] for entry in self.tries]

    @property
    def best(self) -> float | None:
        """The rate of the lowest loss; ``None`` if none came to its end."""
        finished = [entry for entry in self.tries if entry["loss"] is not None]
        return min(finished, key=lambda entry: entry["loss"])["learning_rate"] if finished else None

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the lowest or the highest that was tried. Rates that diverged count as tried."""
        return self.best is None or self.best in (self.rates[0], self.rates[-1])

    @property
    def extension(self) -> float | None:
        """The next rate to try beyond the edge that the best lies at; downwards where all diverged."""
        if not self.at_edge:
            return None
        return self.rates[0] / 2 if self.best in (None, self.rates[0]) else self.rates[-1] * 2


def tune(
    experiment: Experiment,
    out: str | Path = "runs",
    *,
    ledger: str | Path | None = None,
    rates: Sequence[float] | None = None,
    fraction: float = 0.25,
    launch: Launch = run_here,
) -> dict[str, Grid]:
    """Try learning rates for every arm at a fraction of its budget, with the first seed, and write the ledger.

    All arms get equal tries: four rates a factor of 2 apart, and one more beyond the edge as long as the best lies
    there, at most :data:`MAX_EXTENSIONS` times. What the ledger holds is not tried again; what diverged is in it too.

    Args:
        experiment: whose arms are tuned.
        out: folder for the tries, in ``out/tune``.
        ledger: a JSON file; ``out/ledger.json`` if not given.
        rates: the first grid of all arms, in place of :data:`GRID` times each arm's own.
        fraction: of the budget.
        launch: how experiments are run.

    Returns:
        The grids by the arms' names.

    Raises:
        ValueError: rates, or the fraction, are impossible.
        RunFolderError: the ledger is damaged, or a run failed.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction = {fraction}: must be above 0 and at most 1")
    if rates is not None and not (len(set(rates)) > 1 and all(0 < rate < math.inf for rate in rates)):
        raise ValueError(f"rates = {tuple(rates)}: must be two or more different positive finite numbers")
    path = Path(out) / "ledger.json" if ledger is None else Path(ledger)
    trials = {arm.name: _trial(arm, fraction) for arm in experiment.arms}
    wanted = {
        name: set(rates or (factor * trial.training.learning_rate for factor in GRID)) for name, trial in trials.items()
    }
    entries = read_ledger(path)
    for _ in range(1 + MAX_EXTENSIONS):
        missing = {
            (name, rate): at_rate(trials[name], rate)
            for name, asked in wanted.items()
            for rate in sorted(asked - set(_grid(entries, experiment, trials[name]).rates))
        }
        if missing:
            arms = tuple(replace(arm, name=_try_name(name, rate)) for (name, rate), arm in missing.items())
            tries = replace(
                experiment, name=f"{experiment.name}-tune", arms=arms, seeds=experiment.seeds[:1], snapshots=1
            )
            _enter(path, [])  # fails now, not after the tries, where it cannot be written
            root, failures = launch(tries, Path(out) / "tune")
            entries = _enter(
                path,
                [
                    _entry(experiment, arm, folder) | {"arm": name}
                    for (name, rate), arm in missing.items()
                    if (folder := root / _try_name(name, rate) / f"seed{experiment.seeds[0]}").exists()
                    and _try_name(name, rate) not in failures
                ],
            )
            if failures:
                raise RunFolderError(f"tries failed, and were not entered: {'; '.join(failures.values())}")
        grids = {name: _grid(entries, experiment, trial) for name, trial in trials.items()}
        wanted = {name: {grid.extension} for name, grid in grids.items() if grid.extension is not None}
        if not wanted:
            break
    return grids


def apply_ledger(experiment: Experiment, path: str | Path) -> tuple[Experiment, dict[str, dict[str, Any]]]:
    """The experiment with every arm's best rate, and what ``config.json`` is to say of each arm's tuning.

    An arm's tries are those of the same task, model and training, whatever the name; of several budgets, those of the
    largest. Where there are none, those of the same recipe are reused: the same model, context and training, on other
    documents or from a start with other pieces (``reused`` in the record says so).

    Raises:
        ValueError: an arm was not tuned, or diverged at every rate.
        RunFolderError: there is no ledger, or it is damaged.
    """
    if not Path(path).is_file():
        raise RunFolderError(f"there is no ledger {path}: write it with icl-eval tune")
    entries = read_ledger(Path(path))
    arms, records = [], {}
    for arm in experiment.arms:
        mine = identity(experiment, arm)
        own = [entry for entry in entries if mine == entry["identity"]]
        related = own or [entry for entry in entries if entry.get("recipe") == recipe(experiment, arm)]
        if not related:
            raise ValueError(f"arm {arm.name!r} is not in the ledger {path}: tune it with icl-eval tune")
        largest = max(related, key=lambda entry: entry["flops"])
        own, budget = [entry for entry in related if entry["identity"] == largest["identity"]], largest["budget"]
        grid = _sorted(entry for entry in own if entry["budget"] == budget)
        if grid.best is None:
            raise ValueError(f"arm {arm.name!r} diverged at every rate in the ledger {path}")
        arms.append(at_rate(arm, grid.best))
        records[arm.name] = {
            "learning_rate": grid.best,
            "at_edge": grid.at_edge,
            "budget": budget,
            "reused": largest["identity"] != mine,
            "learning_rates": grid.rates,
            "losses": [entry["loss"] for entry in grid.tries],
        }
    return replace(experiment, arms=tuple(arms)), records


def identity(experiment: Experiment, arm: Arm) -> str:
    """Hash of what a best learning rate depends on, but for the budget: task, data, model, training, user's code."""
    task = [arm.task.identity(), arm.task.version, _data_hash(arm.task)]
    return _hash(experiment, arm, task, _NOT_LEARNED_FROM)


def recipe(experiment: Experiment, arm: Arm) -> str:
    """Hash of what :func:`identity` is one of, but for the documents and the pieces that training starts with."""
    task = arm.task
    if isinstance(task, TextTask):
        what: list[Any] = ["text", task.tokenizer, task.num_tokens, task.seq_len]
    else:
        what = [task.identity(), task.version]
    return _hash(experiment, arm, what, (*_NOT_LEARNED_FROM, *_START))


def _hash(experiment: Experiment, arm: Arm, task: list[Any], left_out: Sequence[str]) -> str:
    training = {key: value for key, value in arm.training.to_dict().items() if key not in left_out}
    code = replace(experiment, arms=(arm,)).user_code()
    text = json.dumps([task, arm.model.identity(), training, code], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """The tries in a ledger; none if there is no file.

    Raises:
        RunFolderError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text())["tries"]
        for entry in entries:
            _ = entry["identity"], entry["budget"], entry["loss"], entry["flops"], float(entry["learning_rate"])
        return entries
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"the ledger {path} is damaged: {error!r}") from error


def _enter(path: Path, tries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The ledger's tries, once these are in it; other commands may write the same ledger meanwhile.

    Raises:
        RunFolderError: the ledger is damaged, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path.parent, os.O_RDONLY)
    except OSError as error:
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        entries = read_ledger(path) + tries
        write_atomically(path, to_json({"tries": entries}, indent=1))
        return entries
    finally:
        os.close(descriptor)


@cache
def _data_hash(task: Task) -> str | None:
    return task.build(0).manifest().get("sha256")


def _trial(arm: Arm, fraction: float) -> Arm:
    """The arm at a fraction of its budget, measured at the end only."""
    budget = replace(arm.budget, **{arm.budget.unit: fraction * arm.budget.asked})
    return replace(arm, budget=budget, training=replace(arm.training, branches=(1.0,)))


def at_rate(arm: Arm, rate: float) -> Arm:
    """The arm at another learning rate, the final one in the same proportion."""
    share = arm.training.final_learning_rate / arm.training.learning_rate
    return replace(arm, training=replace(arm.training, learning_rate=rate, final_learning_rate=rate * share))


def _try_name(name: str, rate: float) -> str:
    short = f"{rate:g}"
    return f"{name}-{short if float(short) == rate else repr(rate)}".replace("+", "")


def _grid(entries: list[dict[str, Any]], experiment: Experiment, trial: Arm) -> Grid:
    mine, budget = identity(experiment, trial), trial.budget.to_dict()
    return _sorted(entry for entry in entries if entry["identity"] == mine and entry["budget"] == budget)


def _sorted(entries: Iterator[dict[str, Any]]) -> Grid:
    by_rate = {entry["learning_rate"]: entry for entry in entries}
    return Grid([by_rate[rate] for rate in sorted(by_rate)])


def _entry(experiment: Experiment, arm: Arm, folder: Path) -> dict[str, Any]:
    (run,) = load_runs(folder)
    estimate = None if run.diverged or run.positions is None else overall([run.positions])
    return {
        "identity": identity(experiment, arm),
        "recipe": recipe(experiment, arm),
        "model": arm.model.label,
        "budget": arm.budget.to_dict(),
        "learning_rate": arm.training.learning_rate,
        "status": run.status["status"],
        "loss": None if estimate is None else float(estimate.value),
        "interval": None if estimate is None else [float(estimate.low), float(estimate.high)],
        "steps": run.status["step"],
        "flops": arm.flops_after(run.status["step"]),
        "seconds": run.status["seconds_spent"],
    }
