"""The command line as a user types it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from icl_eval import commands
from icl_eval.cli import COMMANDS, main
from icl_eval.launch import _Worker
from icl_eval.presets import load_preset

USER_FILE = '''
from dataclasses import dataclass
from typing import ClassVar

from icl_eval import Arm, Budget, Experiment, Training
from icl_eval.models import ModelConfig, Softmax
from icl_eval.tasks import MQAR


@dataclass(frozen=True, kw_only=True)
class HarderMQAR(MQAR):
    """A task of the user's own."""

    name: ClassVar[str] = "harder_mqar"


def experiment():
    task = HarderMQAR(seq_len=32, vocab_size=32, num_pairs=4)
    model = ModelConfig(vocab_size=32, num_layers=1, mixers=(Softmax(width=16, num_heads=2),))
    arm = Arm(name="mine", task=task, model=model, training=Training(batch_size=4), budget=Budget(tokens=2560))
    return Experiment(name="my-own", question="Mine?", arms=(arm,), eval_sequences=8, eval_batch_size=8, snapshots=3)
'''


def icl_eval(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: object
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error."""
    monkeypatch.setattr(sys, "argv", ["icl-eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return (stop.value.code or 0, *capsys.readouterr())  # type: ignore[return-value]


def test_list_names_everything(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    code, out, _ = icl_eval(monkeypatch, capsys, "list")
    assert code == 0
    for name in ("quickstart", "mqar", "source_code", "softmax", "window", "linear", "power"):
        assert f"  {name} " in out
    words = " ".join(out.split())
    assert "[224 bits of state]" in words
    assert "the best (the paper's figure 2)? fig3_window_vs_linear C6: a window" in words
    assert '"""' not in words


def test_show_prints_config_and_plan_without_training(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = icl_eval(monkeypatch, capsys, "show", "quickstart", "--config")
    assert code == 0
    assert json.loads(out) == load_preset("quickstart").to_dict()
    code, out, _ = icl_eval(monkeypatch, capsys, "show", "quickstart")
    assert code == 0
    assert "mismatch" in out
    assert "mqar: the best possible loss takes 192 bits of state at context 192" in out


def test_show_puts_other_documents_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = icl_eval(monkeypatch, capsys, "show", "fig9_long_context", "--text", str(tmp_path), "--config")
    assert code == 0
    assert {arm["task"]["path"] for arm in json.loads(out)["arms"]} == {str(tmp_path)}


def test_a_users_own_file_runs_plots_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    preset = tmp_path / "my_preset.py"
    preset.write_text(USER_FILE)
    out = tmp_path / "runs"
    code, text, errors = icl_eval(monkeypatch, capsys, "run", preset, "--out", out, "--device", "cpu", "--seeds", "0,1")
    assert code == 0, errors
    (folder,) = out.iterdir()
    assert {path.name for path in (folder / "mine").iterdir()} == {"seed0", "seed1"}
    assert "loss_by_position.png" in text
    plot = ["plot", folder / "mine", "--out", tmp_path / "new", "--preset", preset]
    code, text, errors = icl_eval(monkeypatch, capsys, *plot)
    assert code == 0, errors
    assert (tmp_path / "new" / "training.png").exists()
    preset.write_text(USER_FILE + "# another version\n")
    icl_eval(monkeypatch, capsys, "run", preset, "--out", out, "--device", "cpu")
    first, second = sorted(out.iterdir(), key=lambda path: path != folder)
    assert first == folder, "results of changed code are not reused"

    code, text, errors = icl_eval(monkeypatch, capsys, "plot", out, first, "--preset", preset)
    assert code == 0, errors
    assert [text.count(f"mine ({root.name}) ") for root in (first, second)] == [1, 1]
    code, text, errors = icl_eval(monkeypatch, capsys, "compare", out, "--preset", preset)
    assert code == 0, errors
    assert f"mine, {first.name}" in text
    assert f"mine, {second.name}" in text
    assert ", seed 0\n" in text, "the seed that both have"

    code, _, errors = icl_eval(monkeypatch, capsys, "report", first, "--out", tmp_path, "--preset", preset)
    assert code == 0, errors
    report = (tmp_path / "report.md").read_text()
    assert re.search(r"^Again, with commit \S+: `icl-eval run my_preset.py --seeds 0,1`$", report, re.MULTILINE)

    (first / "mine" / "seed1" / "DONE").unlink()
    _, text, _ = icl_eval(monkeypatch, capsys, "plot", first, "--preset", preset)
    assert "Not finished, and left out: mine seed 1." in text
    _, text, _ = icl_eval(monkeypatch, capsys, "plot", second / "mine" / "seed0", "--preset", preset)
    assert "Not finished" not in text
    (first / "mine" / "seed0" / "positions.npz").unlink()
    code, _, errors = icl_eval(monkeypatch, capsys, "plot", first, "--preset", preset)
    assert code == 2
    assert "positions.npz is damaged" in errors


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])  # test_launch runs processes
def test_arms_can_be_chosen_and_join_the_others_later(
    jobs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = ["run", "fig9_long_context", "--text", tmp_path / "texts", "--out", tmp_path / "runs", "--device", "cpu"]
    for split, count in (("train", 2), ("heldout", 8)):
        (tmp_path / "texts" / split).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "texts" / split / f"{index}.txt").write_text(f"{split} {index}: " + "a b c d e f g " * 40)
    for arms, expected in (("linear, power", {"linear", "power"}), ("softmax", {"linear", "power", "softmax"})):
        code, _, errors = icl_eval(monkeypatch, capsys, *command, "--arms", arms, "--jobs", jobs)
        assert code == 0, errors
        (folder,) = (tmp_path / "runs").iterdir()
        assert {done.parent.parent.name for done in folder.rglob("DONE")} == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "No such command 'lst'. Did you mean 'list'?"),
        (["data", "inpect"], "No such command 'inpect'. Did you mean 'inspect'?"),
        (["run", "quikstart"], "unknown preset 'quikstart'; did you mean 'quickstart'"),
        (["run", "nowhere.py"], "there is no file 'nowhere.py'"),
        (["run", "quickstart", "--seeds", "a"], "--seeds 'a': must be whole numbers"),
        (["run", "quickstart", "--device", "gpu"], "device = 'gpu'"),
        (["run", "quickstart", "--arms", "mqar-powr"], "unknown arm 'mqar-powr'; did you mean 'mqar-power'"),
        (["run", "quickstart", "--gpus-per-run", "0.5"], "--gpus-per-run 0.5: needs --launcher ray"),
        (["run", "quickstart", "--jobs", "2", "--launcher", "ray"], "--jobs 2: --launcher ray runs as many at a time"),
        (["run", "quickstart", "--seeds", "0,5000000000"], "must be distinct integers from 0 to 2**32 - 1"),
        (["run", "quickstart", "--launcher", "rya"], "unknown launcher 'rya'; did you mean 'ray'"),
        (["run", "quickstart", "--ledger", "nowhere.json"], "there is no ledger nowhere.json"),
        (["tune", "tables"], "the preset 'tables' trains nothing"),
        (["tune", "quickstart", "--rates", "1e-3;2e-3"], "--rates '1e-3;2e-3': must be numbers parted by commas"),
        (["plot", "nowhere"], "nowhere holds no finished run"),
        (["table", "wsf"], "unknown table 'wsf'; did you mean 'wsfr'"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, _, errors = icl_eval(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_processes_under_torchrun_start_none_of_their_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, errors = icl_eval(monkeypatch, capsys, "run", "quickstart", "--jobs", "2")
    assert code == 2
    assert "torchrun, which --sharding needs, goes neither with --jobs nor with --launcher ray" in errors


def test_where_all_runs_fail_every_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    command = [
        "run",
        str(Path(__file__).parent / "tiny.py"),
        "--out",
        tmp_path,
        "--device",
        "cpu",
        "--arms",
        "mqar-softmax",
    ]
    assert icl_eval(monkeypatch, capsys, *command)[0] == 0
    monkeypatch.setattr(_Worker, "run", lambda self, job: f"no luck with {job['seed']}")
    code, _, errors = icl_eval(monkeypatch, capsys, *command, "--seeds", "1,2", "--jobs", "2")
    assert code == 2
    reasons = errors.split("runs failed: ")[1].strip().split("; ")
    assert sorted(reasons) == [f"mqar-softmax seed {seed}: no luck with {seed}" for seed in (1, 2)]
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("\ndef experiment(:", "mine.py, line 2: SyntaxError: "),
        ("import nowhere_to_be_found", "mine.py, line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def experiment():\n    return [][1]", "mine.py, line 2: IndexError: list index out of range"),
        (
            "from icl_eval import Budget\ndef experiment():\n    return Budget(token=3)",
            "mine.py, line 3: Budget has no field 'token'; did you mean 'tokens'?",
        ),
        (
            "from icl_eval.models import MixerConfig\nclass Nameless(MixerConfig): pass\n"
            "def experiment():\n    return Nameless()",
            "mine.py, line 4: Nameless lacks the class variable 'name'",
        ),
        ("x = 1", "must define a function experiment()"),
    ],
    ids=["syntax", "import", "bug", "field", "class variable", "no experiment"],
)
def test_mistakes_in_a_users_file_are_answered_with_the_line(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    code, _, errors = icl_eval(monkeypatch, capsys, "show", "mine.py")
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


def test_tables_hold_the_papers_numbers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    _, state, _ = icl_eval(monkeypatch, capsys, "table", "state")
    for number in ("4,096", "2,080", "45,760", "766,480", "10,424,128", "119,877,472", "68,719,476,736"):
        assert state.count(number) >= 2
    _, wsfr, _ = icl_eval(monkeypatch, capsys, "table", "wsfr")
    for ratio in ("6.5:1", "1:1.2", "1:9.8", "1:149", "104.7:1", "1:125"):
        assert ratio in wsfr


def test_doctor_names_the_backend_and_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, out, _ = icl_eval(monkeypatch, capsys, "doctor")
    assert code == 0
    assert "backend: chunked, because" in out
    assert out.count("ok    degree") == 4
    assert "extras of icl-eval" in out


def test_the_installed_command_starts_and_lists_all_commands() -> None:
    modules = Path(commands.__file__).parent.glob("*.py")
    with_app = {file.stem.replace("_", "-") for file in modules if "\napp = " in file.read_text()}
    assert set(COMMANDS) == with_app
    command = Path(sys.executable).parent / "icl-eval"
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    for name in COMMANDS:
        assert re.search(rf"^│ {name} +[A-Z][^│]{{10}}", shown, flags=re.MULTILINE), name


ARGUMENTS = {
    "list": "List presets", "show": "--config", "run": "--seeds", "tune": "--rates", "plot": "RUN...", "table": "wsfr",
    "doctor": "Check every kernel", "claims": "RUN...", "report": "--preset", "measure": "--spans",
    "compare": "--baseline", "path": "lm-eval-tasks", "lm-eval": "RUN", "data": "inspect", "task": "check",
    "mixer": "check",
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_explains_its_arguments(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, out, _ = icl_eval(monkeypatch, capsys, name, "--help")
    assert code == 0
    assert f"Usage: icl-eval {name} [OPTIONS]" in out
    assert ARGUMENTS[name] in out
    assert "--install-completion" not in out
