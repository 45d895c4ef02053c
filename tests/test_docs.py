"""The code of the documents runs as it stands there, and passes the checks that they tell of."""

import re
import sys
from pathlib import Path

import pytest

from icl_eval import load_runs
from icl_eval.cli import main
from icl_eval.tasks import TASKS

DOCS = Path(__file__).parents[1] / "docs"
FILES = {
    name: code
    for document in ("add_a_task.md", "add_a_mixer.md")
    for name, code in re.findall(
        r"<!-- runs: (\S+) -->\n```python\n(.*?)```", (DOCS / document).read_text(), flags=re.DOTALL
    )
}


def icl_eval(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["icl-eval", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["my_task.py", "my_mixer.py"])
def test_a_users_file_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_text(FILES[name])
    monkeypatch.chdir(tmp_path)
    assert icl_eval(monkeypatch, "run", name, "--device", "cpu") == 0
    assert all(run.status["status"] == "complete" for run in load_runs("runs"))


def test_the_task_passes_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "my_task.py").write_text(FILES["my_task.py"])
    assert icl_eval(monkeypatch, "task", "check", str(tmp_path / "my_task.py"), "--seconds", "8") == 0
    shown = capsys.readouterr().out
    assert "40 bits needed" in shown
    assert all(f"ok    {check}" in shown for check in ("determinism", "learned", "optimum is a bound", "leakage"))


def test_the_mixer_passes_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "my_mixer.py").write_text(FILES["my_mixer.py"])
    assert icl_eval(monkeypatch, "mixer", "check", str(tmp_path / "my_mixer.py")) == 0
    shown = capsys.readouterr().out
    assert shown.count("  ok    ") == 7
    assert "note  gradients: none reaches q_proj.weight, k_proj.weight" in shown


def test_the_text_form_of_the_tasks_page(capsys: pytest.CaptureFixture) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "tasks.md").read_text(), flags=re.DOTALL)
    exec(block, scope := {})
    made = scope["made"]
    assert made.answers[0] in made.choices
    assert made.answers[0] in capsys.readouterr().out


def test_the_tasks_page_names_every_task() -> None:
    page = (DOCS / "tasks.md").read_text()
    assert all(f"`{name}`" in page for name in TASKS)
