"""Presets: a name of ours or a file of the user's, loaded in one and the same way."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from icl_eval.config import Config, did_you_mean
from icl_eval.experiment import Experiment, Untrained
from icl_eval.tasks import Files, LongCrawl64, TextTask

C = TypeVar("C", bound=Config)


def preset_files() -> dict[str, Path]:
    """The built-in presets: name and file."""
    folder = Path(str(files("icl_eval.experiments")))
    return {file.stem: file for file in sorted(folder.glob("*.py")) if "\ndef experiment(" in file.read_text()}


def load_preset(name_or_file: str, scale: str | None = None) -> Experiment:
    """The experiment that a preset defines, as :func:`define_preset` finds it.

    Raises:
        ValueError: it defines none, or has nothing to train.
    """
    preset = define_preset(name_or_file, scale)
    if isinstance(preset, Untrained):
        raise ValueError(f"the preset {name_or_file!r} trains nothing: its answer is that of {preset.commands[0]}")
    return preset


def define_preset(name_or_file: str, scale: str | None = None) -> Experiment | Untrained:
    """What a built-in preset or a Python file defines by its function ``experiment()``.

    The file may define its own tasks, mixers and models; nothing needs registering. Where the function takes a
    ``scale``, it is called with the one given, or without for its default.

    Raises:
        ValueError: no such preset or file, the file does not define an experiment, or has no such scale.
    """
    builtin = preset_files()
    if name_or_file in builtin:
        path = builtin[name_or_file]
    elif name_or_file.endswith(".py"):
        path = _users_file(name_or_file)
    else:
        raise ValueError(
            f"unknown preset {name_or_file!r}; {did_you_mean(name_or_file, builtin)} A file's name ends in .py."
        )
    with _located_errors(path):
        define = getattr(_load(path), "experiment", None)
    if not callable(define):
        raise ValueError(f"{path} must define a function experiment() that returns an icl_eval.Experiment")
    if scale is not None and "scale" not in inspect.signature(define).parameters:
        raise ValueError(f"--scale {scale}: the preset {name_or_file} has no scales")
    with _located_errors(path):
        experiment = define() if scale is None else define(scale=scale)
    if not isinstance(experiment, Experiment | Untrained):
        raise ValueError(f"{path}: experiment() must return an icl_eval.Experiment, not {type(experiment).__name__}")
    return experiment


def defaults_in(file: str, kind: type[C]) -> list[C]:
    """A config with its defaults of every class of a kind that a file without an ``experiment()`` defines.

    Empty where the file has an ``experiment()``, which says what it is about.

    Raises:
        ValueError: there is no such file, or it holds neither.
    """
    path = _users_file(file)
    with _located_errors(path):
        module = _load(path)
        if hasattr(module, "experiment"):
            return []
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        found = [cls() for cls in classes if issubclass(cls, kind)]
    if not found:
        raise ValueError(f"{path} defines neither a function experiment() nor a subclass of icl_eval's {kind.__name__}")
    return found


@contextmanager
def _located_errors(path: Path) -> Iterator[None]:
    """Say of whatever goes wrong in a user's file in which of its lines it did; built-in presets are left alone.

    Raises:
        ValueError: in place of any exception.
    """
    try:
        yield
    except Exception as error:
        if path in preset_files().values():
            raise
        file = str(path.absolute())
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
        what = str(error)
        if isinstance(error, SyntaxError):
            lines, what = lines + [error.lineno] * (error.filename == file), error.msg
        where = f"{path}, line {lines[-1]}" if lines else str(path)
        explained = isinstance(error, ValueError) or " has no field " in what
        raise ValueError(f"{where}: {'' if explained else f'{type(error).__name__}: '}{what}") from error


def _users_file(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"there is no file {name!r}")
    return path


def _load(path: Path) -> ModuleType:
    module_name = f"icl_eval_preset_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def on_text(experiment: Experiment, path: str | Path) -> Experiment:
    """The experiment with every text task replaced by ``Files(path)``, of the same context and tokens.

    Raises:
        ValueError: it has no text task.
    """
    arms = tuple(
        replace(
            arm,
            task=Files(
                path=str(path),
                seq_len=arm.task.seq_len,
                tokenizer=arm.task.tokenizer,
                vocab_size=arm.task.vocab_size,
                tokenizer_path=arm.task.tokenizer_path,
                rolled_windows=arm.task.rolled_windows if isinstance(arm.task, TextTask) else None,
            ),
        )
        if isinstance(arm.task, TextTask | LongCrawl64)
        else arm
        for arm in experiment.arms
    )
    if arms == experiment.arms:
        raise ValueError(f"--text {path}: no task of {experiment.name!r} is on text")
    return replace(experiment, arms=arms)
