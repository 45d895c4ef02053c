"""Run folders: what a run leaves on disk, written atomically and read back with suspicion.

config.json     the arm and seed, resolved, and what else determined the numbers
env.json        versions, hardware, commit, and how many runs shared the device
data.json       manifest of the data
tokenizer.json  vocabulary, where tokens are text but not bytes
metrics.jsonl   a line every few steps: branch (null on the trunk), step, tokens, flops, seconds, loss, learning rate,
                gradient norm, skipped steps, and steps and seconds spent on the trunk and all branches
positions.npz   losses by position at points of the budget (icl_eval.positions.Positions)
checkpoint/     the last two resumable states (icl_eval.checkpoint)
DONE            how it ended; a folder without it is unfinished and never read as a result
"""

import fcntl
import json
import math
import os
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pandas as pd

from icl_eval.config import config_from_dict
from icl_eval.positions import Positions


class RunFolderError(RuntimeError):
    """A run folder cannot be written, or is not what it should be. The message is one sentence for the user."""


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it: readers see all of it or none.

    Raises:
        RunFolderError: the folder cannot be written to or the disk is full.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise RunFolderError(f"cannot write {path}: {error.strerror or error}") from error


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON and a newline, with null in place of NaN and infinities: missing is null, never zero."""
    return json.dumps(_finite(value), allow_nan=False, indent=indent) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class RunFolder:
    """The writing side of one run's folder."""

    def __init__(self, path: Path):
        self.path = path

    @property
    def done(self) -> bool:
        return (self.path / "DONE").is_file()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out while the block runs. The system takes the lock from a process that dies.

        Raises:
            RunFolderError: another process has it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path}: {error.strerror or error}") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunFolderError(f"another process is at work on {self.path}: wait for it, or end it") from None
            yield
        finally:
            os.close(descriptor)

    def recorded_config(self) -> dict[str, Any] | None:
        """``config.json`` as an earlier, interrupted call wrote it, or ``None``."""
        file = self.path / "config.json"
        return _read_json(file) if file.is_file() else None

    def recorded_sharing(self) -> int:
        """``runs_per_device`` of ``env.json`` as an earlier, interrupted call wrote it, or 0."""
        file = self.path / "env.json"
        return _read_json(file).get("runs_per_device", 0) if file.is_file() else 0

    def begin(
        self, config: dict[str, Any], env: dict[str, Any], manifest: dict[str, Any], vocabulary: str | None
    ) -> None:
        """Write what the run is, before it starts."""
        if vocabulary is not None:
            write_atomically(self.path / "tokenizer.json", vocabulary)
        for name, content in (("config.json", config), ("env.json", env), ("data.json", manifest)):
            write_atomically(self.path / name, to_json(content, indent=2))

    def rewind(self, steps_spent: int, measured: list[int]) -> Positions | None:
        """Forget all that was written after a checkpoint; returns the positions kept.

        Args:
            steps_spent: where the checkpoint stands.
            measured: the steps of the measurements taken by then.

        Raises:
            RunFolderError: one of them is lacking.
        """
        rows = _read_metrics(self.path / "metrics.jsonl", damaged_lines="drop")
        kept = [row for row in rows if row["steps_spent"] <= steps_spent]
        write_atomically(self.path / "metrics.jsonl", "".join(map(to_json, kept)))
        file = self.path / "positions.npz"
        if not measured:
            file.unlink(missing_ok=True)
            return None
        positions = _read_positions(file).first(len(measured)) if file.exists() else None
        if positions is None or positions.step.tolist() != measured:
            raise RunFolderError(f"{self.path} lacks measurements before step {measured[-1]}: remove it to start again")
        return positions

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        try:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(to_json(row))
        except OSError as error:
            raise RunFolderError(f"cannot write {self.path / 'metrics.jsonl'}: {error.strerror or error}") from error

    def save_positions(self, positions: Positions) -> None:
        write_atomically(self.path / "positions.npz", positions.to_bytes())

    def finish(self, **how: Any) -> None:
        """Mark the run as ended: from now on it is a result."""
        write_atomically(self.path / "DONE", to_json(how))


@dataclass(frozen=True)
class Run:
    """A finished run, read back.

    Attributes:
        path: its folder.
        config: ``config.json``: ``arm`` (the resolved config), ``seed``, and what was computed from them: ``schedule``,
            ``costs``, ``device``, ``precision``.
        env: ``env.json``.
        data: ``data.json``.
        status: ``DONE``: ``status`` is ``"complete"`` or ``"nan"`` (the loss, or too many gradients, were not
            finite: ``reason`` says which), with the ``step`` and ``seconds`` at which it ended.
    """

    path: Path
    config: dict[str, Any]
    env: dict[str, Any]
    data: dict[str, Any]
    status: dict[str, Any]

    @property
    def name(self) -> str:
        return self.config["arm"]["name"]

    @property
    def seed(self) -> int:
        return self.config["seed"]

    @property
    def runs_per_device(self) -> int:
        """Runs that shared the device at a time, this one included."""
        return self.env.get("runs_per_device", 1)

    @property
    def diverged(self) -> bool:
        """Whether the loss became NaN or infinite."""
        return self.status["status"] == "nan"

    @cached_property
    def arm(self) -> Any:
        """The arm as an ``icl_eval.Arm``, or a ``MeasuredArm`` where nothing was trained.

        Needs the user's own classes to be defined if it uses any.
        """
        import icl_eval.experiment
        import icl_eval.measured  # noqa: F401 (these define the classes)

        try:
            return config_from_dict(self.config["arm"])
        except ValueError as error:
            hint = "if it is of your own making, name your file with --preset"
            raise RunFolderError(f"the run in {self.path} cannot be understood ({hint}): {error}") from error

    @cached_property
    def metrics(self) -> pd.DataFrame:
        """``metrics.jsonl`` as a table; null is NaN."""
        return pd.DataFrame(_read_metrics(self.path / "metrics.jsonl")).apply(pd.to_numeric)

    @cached_property
    def positions(self) -> Positions | None:
        """Losses by position; ``None`` where the loss was NaN before the first measurement.

        Raises:
            RunFolderError: the file is damaged, or a complete run lacks it.
        """
        file = self.path / "positions.npz"
        return None if self.diverged and not file.exists() else _read_positions(file)


def load_run(path: str | Path) -> Run:
    """Read a finished run: positions, metrics, config and environment.

    Raises:
        RunFolderError: there is no run, it is unfinished, or a file of it is damaged.
    """
    path = Path(path)
    if not (path / "config.json").is_file():
        raise RunFolderError(f"{path} is not a run folder: it has no config.json")
    if not (path / "DONE").is_file():
        raise RunFolderError(f"the run in {path} is unfinished: run the same command again to resume it")
    return Run(path, *(_read_json(path / name) for name in ("config.json", "env.json", "data.json", "DONE")))


def load_runs(paths: str | Path | Sequence[str | Path]) -> list[Run]:
    """Read every finished run at or below the given folders once, in the order their experiments list them.

    Raises:
        RunFolderError: a folder holds no finished run.
    """
    runs = []
    for path in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(path).resolve()
        finished = [load_run(file.parent) for file in sorted(path.rglob("DONE"))]
        if not finished:
            raise RunFolderError(f"{path} holds no finished run (no DONE file at or below it)")
        runs += sorted(finished, key=_place_in_experiment)
    return list({run.path: run for run in runs}.values())


def _place_in_experiment(run: Run) -> tuple[str, int, int]:
    """Sorts runs by experiment folder, by arm as the experiment lists them, and by seed."""
    root = run.path.parents[1]
    listed = _read_json(root / "experiment.json")["arms"] if (root / "experiment.json").is_file() else []
    names = [arm["name"] for arm in listed]
    return str(root), names.index(run.name) if run.name in names else len(names), run.seed


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error


def _read_positions(path: Path) -> Positions:
    try:
        return Positions.from_bytes(path.read_bytes())
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error


def _read_metrics(path: Path, damaged_lines: Literal["drop", "refuse"] = "refuse") -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line torn by a crash is left out.

    Raises:
        RunFolderError: a line before the last is damaged, and such lines are not to be dropped.
    """
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError("it is not a row of metrics")
            rows.append(row)
        except ValueError as error:
            if number == len(lines):
                continue
            if damaged_lines == "refuse":
                raise RunFolderError(f"{path}, line {number} is damaged: {error}") from error
            warnings.warn(f"{path}, line {number} is damaged and left out: {error}", stacklevel=2)
    return rows
