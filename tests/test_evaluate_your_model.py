"""What docs/evaluate_your_model.md says can be done, done: its files and commands, with budgets cut."""

import glob
import re
import runpy
import shlex
import sys
from functools import partialmethod
from pathlib import Path

import pytest
from lm_eval.__main__ import cli_evaluate
from lm_eval.tasks import TaskManager

import icl_eval.tasks
from icl_eval import load_runs
from icl_eval.cli import main

GUIDE = (Path(__file__).parents[1] / "docs" / "evaluate_your_model.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", GUIDE, flags=re.DOTALL))
LM_EVAL = re.findall(r"^    lm-eval (run .*)$", GUIDE, flags=re.MULTILINE)
COMMANDS = re.findall(r"^    ((?:python|icl-eval) .*)$", GUIDE, flags=re.MULTILINE)
CUTS = {"range(60)": "range(2)", "100_000": "10_000", '"num_examples": 40': '"num_examples": 4'}


def cut(text: str) -> str:
    return re.sub("|".join(map(re.escape, CUTS)), lambda found: CUTS[found[0]], text)


def _grouped(command: str) -> str:
    """With the command in the command as one word."""
    return command.replace("$(icl-eval path lm-eval-tasks)", "'$(icl-eval path lm-eval-tasks)'")


def test_files_and_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without lm-eval's own 13,000 task files, which take it long to read and are not what is tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TaskManager, "__init__", partialmethod(TaskManager.__init__, include_defaults=False))
    for name, text in FILES.items():
        assert cut(text) != text, name
        Path(name).write_text(cut(text))
    assert [command.split()[:2] for command in COMMANDS] == [
        ["python", "make_models.py"], ["icl-eval", "run"], ["icl-eval", "measure"], ["icl-eval", "compare"],
        ["icl-eval", "lm-eval"],
    ]  # fmt: skip
    for command in COMMANDS:
        words = [found for word in shlex.split(cut(command)) for found in (sorted(glob.glob(word)) or [word])]  # noqa: PTH207
        if words[0] == "python":
            runpy.run_path(words[1])
            continue
        monkeypatch.setattr(sys, "argv", words + (["--spans", "32"] if words[1] == "measure" else []))
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, command
        out = capsys.readouterr().out
        expected = {"measure": "useful context", "compare": "- llama", "lm-eval": "score/512/depth_"}
        assert expected.get(words[1], "") in out
    (command,) = LM_EVAL
    tasks = str(Path(icl_eval.tasks.__file__).parent / "lm_eval")
    words = [word.replace("$(icl-eval path lm-eval-tasks)", tasks) for word in shlex.split(_grouped(command))]
    monkeypatch.setattr(sys, "argv", ["lm-eval", *words])
    cli_evaluate()
    assert "score/128/depth_" in capsys.readouterr().out
    measured = load_runs("measured")
    assert [run.name for run in measured] == ["gpt2", "llama", "softmax", "power"] * 2
    assert Path("measured/differences.png").exists()
