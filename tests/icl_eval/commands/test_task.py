"""``icl-eval task check`` finds what is wrong with a task, and nothing where nothing is."""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest

from icl_eval.commands.task import _speed, check_task, sample
from icl_eval.tasks import MQAR, Classification, Markov, RegBench, Regression, SourceCode, Task
from icl_eval.tasks.base import GeneratedTask
from tests.icl_eval.test_cli import icl_eval


@dataclass(frozen=True, kw_only=True)
class Recited(GeneratedTask):
    """A random string of 4, and again: the healthy task that the sick ones below derive from."""

    name: ClassVar[str] = "recited"
    version: ClassVar[int] = 1
    num_tokens: ClassVar[int] = 17
    seq_len: int = 8

    def optimum(self, position: np.ndarray) -> np.ndarray:
        return np.zeros(len(position))

    def chance(self) -> float:
        return float(np.log(16))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        string = rng.integers(1, 17, (rows, 4))
        whole = np.concatenate([string, np.zeros((rows, 1), int), string], axis=1)
        position = np.tile(np.arange(1, 9), (rows, 1))
        return {"tokens": whole[:, :-1], "targets": whole[:, 1:], "scored": position > 4, "position": position}


def sick(name: str, **methods: Callable) -> Task:
    """The healthy task with methods replaced."""
    cls = type(name, (Recited,), {**methods, "__module__": __name__})
    return dataclass(frozen=True, kw_only=True)(cls)()


def changed(**change: Callable[[dict], np.ndarray]) -> Callable:
    """A ``draw`` whose arrays are changed after drawing."""

    def draw(self: GeneratedTask, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        arrays = Recited.draw(self, rng, rows)  # type: ignore[arg-type]
        return arrays | {field: make(arrays) for field, make in change.items()}

    return draw


def from_numpy(arrays: dict) -> np.ndarray:
    return np.random.randint(1, 17, arrays["tokens"].shape)


SICK = {
    "shifted": (sick("Shifted", draw=changed(tokens=lambda a: a["targets"])), "targets in sight", "shifted by one"),
    "global": (sick("Global", draw=changed(tokens=from_numpy)), "determinism", "from no global state"),
    "vocabulary": (sick("Vocabulary", draw=changed(targets=lambda a: a["targets"] + 9)), "shapes", "outside"),
    "unscored": (sick("Unscored", draw=changed(scored=lambda a: a["position"] > 99)), "shapes", "no scored token"),
    "real": (sick("Real", draw=changed(targets=lambda a: a["targets"].astype(np.float32))), "shapes", "float32"),
    "short": (sick("Short", draw=changed(scored=lambda a: a["position"][:, :5] > 4)), "shapes", r"[8, 5]"),
    "constant": (sick("Constant", draw=changed(tokens=lambda a: 0 * a["tokens"])), "splits", "repeat"),
    "far": (sick("Far", draw=changed(position=lambda a: a["position"] + 1)), "shapes", "num_positions = 9"),
    "worse": (sick("Worse", optimum=lambda self, p: np.full(len(p), 3.0)), "optimum", "leaves [0, chance = 2.773]"),
}


@pytest.fixture(autouse=True)
def briefly_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast batches are made is not looked at here."""
    monkeypatch.setattr("icl_eval.commands.task._speed", partial(_speed, seconds=0.05))


def verdicts(task: Task, seconds: float = 0.0) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.verdict, finding.detail) for finding in check_task(task, seconds)}


@pytest.mark.parametrize(
    "task",
    [Recited(), MQAR(), Markov(), Regression(), RegBench(), Classification(), SourceCode(seq_len=64)],
    ids=lambda t: t.name,
)
def test_healthy_tasks_pass(task: Task) -> None:
    found = verdicts(task)
    assert not [name for name, (verdict, _) in found.items() if verdict == "FAIL"], found
    assert sample(task).count("\n") >= 4


@pytest.mark.parametrize("kind", SICK)
def test_sick_tasks_are_found_out(kind: str) -> None:
    task, check, message = SICK[kind]
    (found,) = [entry for name, entry in verdicts(task).items() if name.startswith(check)]
    assert found[0] == "FAIL"
    assert message in found[1]


@pytest.mark.parametrize(
    ("draw", "drawn"),
    [
        (lambda self, rng, rows: {"tokens": rng.integers(1, 17, (rows, 8))}, "tokens"),
        (changed(mask=lambda a: a["scored"]), "tokens, targets, scored, position, mask"),
    ],
    ids=["too little", "too much"],
)
def test_a_task_that_draws_other_fields_is_told_which(draw: Callable, drawn: str) -> None:
    message = f"the task 'recited' draws {drawn}; it must draw tokens, targets, scored, position, and inputs where"
    with pytest.raises(ValueError, match=message):
        list(check_task(sick("Fields", draw=draw), 0.0))


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which every machine trains 30 steps a second."""
    ticks = itertools.count()
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 30, process_time=time.process_time)
    monkeypatch.setattr("icl_eval.commands.task.time", clock)


def test_a_leak_and_a_false_optimum_are_found_by_training(steady: None) -> None:
    leaky = sick(
        "Leaky",
        draw=changed(tokens=lambda a: np.where(a["scored"], (a["targets"] + 3) % 16 + 1, a["tokens"])),
        optimum=lambda self, p: np.full(len(p), 2.0),
    )
    found = verdicts(leaky, seconds=1.0)
    assert found["leakage"][0] == found["optimum is a bound"][0] == "FAIL", found
    assert found["learned by a small softmax model"][0] == "ok"


def test_what_cannot_be_learned_is_said(steady: None) -> None:
    noise = sick(
        "Noise", draw=changed(targets=lambda a: 1 + (7 * a["tokens"].sum(1, keepdims=True) + a["targets"]) % 16)
    )
    verdict, detail = verdicts(noise, seconds=0.5)["learned by a small softmax model"]
    assert verdict == "FAIL"
    assert "not learned" in detail


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mqr"], "unknown task 'mqr'; did you mean 'mqar'"),
        (["nowhere.py"], "there is no file 'nowhere.py'"),
        (["mqar", "--seconds", "-1"], "--seconds -1: must be at least 0"),
        (["files"], "the task 'files' cannot be checked with its defaults alone"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, _, errors = icl_eval(monkeypatch, capsys, "task", "check", *arguments)
    assert code == 2
    assert message in errors


def test_a_file_without_an_experiment_is_checked_with_its_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "without_experiment.py"
    file.write_text(
        "from typing import ClassVar\nfrom icl_eval.tasks import MQAR\n\n\n"
        'class ShortRecall(MQAR):\n    name: ClassVar[str] = "short_recall"\n'
    )
    code, out, _ = icl_eval(monkeypatch, capsys, "task", "check", file, "--seconds", "0")
    assert code == 0
    assert out.count("short_recall: ShortRecall(") == 1
