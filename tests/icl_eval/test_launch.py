"""Several runs at once: processes on this machine, and tasks of a Ray cluster whose workers die."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from icl_eval import Budget
from icl_eval.launch import Job, _gpus, _Worker, run_here, run_in_processes, run_on_ray
from icl_eval.presets import load_preset
from icl_eval.run_folder import RunFolder, RunFolderError, load_runs
from tests.icl_eval.test_run import assert_identical

TINY = str(Path(__file__).parent / "tiny.py")
KILLING = f'''
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

from icl_eval.presets import load_preset
from icl_eval.tasks import MQAR


@dataclass(frozen=True, kw_only=True)
class Deadly(MQAR):
    """Kills the first process that comes to training batch 20."""

    marker: str = ""

    def build(self, seed):
        source = super().build(seed)
        make = source.batch

        def batch(split, index, batch_size):
            if split == "train" and index == 20 and not Path(self.marker).exists():
                Path(self.marker).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return make(split, index, batch_size)

        source.batch = batch
        return source


def experiment():
    tiny = load_preset({TINY!r})
    arm = tiny.arms[0]
    task = Deadly(seq_len=32, vocab_size=32, num_pairs=4, marker=str(Path(__file__).with_name("killed")))
    deadly = replace(arm, name="deadly", task=task, training=replace(arm.training, schedule="branched"))
    return replace(tiny, arms=(deadly, arm))
'''


@pytest.fixture
def preset(tmp_path: Path) -> Path:
    file = tmp_path / "killing.py"
    file.write_text(KILLING)
    return file


@pytest.fixture
def undisturbed(preset: Path, tmp_path: Path) -> Path:
    marker = tmp_path / "killed"
    marker.touch()
    root, _ = run_here(load_preset(str(preset)), tmp_path / "undisturbed", device="cpu")
    marker.unlink()
    return root


def test_a_run_that_dies_is_reported_and_stops_no_other(preset: Path, undisturbed: Path, tmp_path: Path) -> None:
    experiment, ended = load_preset(str(preset)), []
    root, failures = run_in_processes(
        experiment, tmp_path / "runs", jobs=2, preset=str(preset), device="cpu", on_end=lambda *end: ended.append(end)
    )
    assert failures == {"deadly": "deadly seed 0: killed by signal 9"}
    assert sorted(ended) == [("deadly seed 0", "killed by signal 9"), ("mqar-softmax seed 0", None)]
    assert not (root / "deadly" / "seed0" / "DONE").exists()
    again, failures = run_in_processes(experiment, tmp_path / "runs", jobs=2, preset=str(preset), device="cpu")
    assert (again, failures) == (root, {})
    assert_identical(undisturbed, root)
    assert {run.env["runs_per_device"] for run in load_runs(root)} == {2}
    assert json.loads((root / "experiment.json").read_text())["preset"] == "killing.py"


@pytest.mark.parametrize("how", ["close", "kill"])
def test_processes_end_with_their_parent(how: str, tmp_path: Path) -> None:
    long = replace(load_preset(TINY).arms[0], budget=Budget(flops=1e13))
    job = {
        "preset": TINY, "experiment": replace(load_preset(TINY), arms=(long,)).to_dict(), "arm": long.name, "seed": 0,
        "out": str(tmp_path), "device": "cpu", "tracker": None, "tuning": None,
        "runs_per_device": 1,
    }  # fmt: skip
    child = subprocess.Popen([sys.executable, "-m", "icl_eval.launch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(job).encode() + b"\n")
    child.stdin.flush()
    deadline = time.monotonic() + 120
    while not list(tmp_path.rglob("config.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (config,) = tmp_path.rglob("config.json")
    with (
        pytest.raises(RunFolderError, match=r"another process is at work on .*seed0"),
        RunFolder(config.parent).locked(),
    ):
        pass
    if how == "kill":
        child.kill()
    child.stdin.close()
    child.wait(timeout=60)
    assert child.stdout.read() == (b"" if how == "kill" else b"-9\n")
    deadline = time.monotonic() + 60
    while True:
        try:
            with RunFolder(config.parent).locked():
                return
        except RunFolderError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_process_takes_the_gpu_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the runs take: handed out in turns beforehand, the third of them would wait for a busy GPU."""
    seconds, busy, together = {"0": 0.4, "1": 0.02}, Counter(), []

    class Worker(_Worker):
        def run(self, job: Job) -> str | None:
            gpu = self.environment["CUDA_VISIBLE_DEVICES"]
            busy[gpu] += 1
            together.append((gpu, busy[gpu]))
            time.sleep(seconds[gpu])
            busy[gpu] -= 1
            return None

    monkeypatch.setattr("icl_eval.launch._gpus", lambda device: ["0", "1"])
    monkeypatch.setattr("icl_eval.launch._Worker", Worker)
    sweep = replace(load_preset(TINY), seeds=(0, 1, 2, 3, 4))
    run_in_processes(sweep, tmp_path, jobs=2)
    assert {count for _, count in together} == {1}
    assert Counter(gpu for gpu, _ in together) == {"0": 1, "1": len(sweep.arms) * 5 - 1}
    together.clear()
    timed = replace(sweep, arms=tuple(replace(arm, budget=Budget(seconds=1.0)) for arm in sweep.arms))
    assert run_in_processes(timed, tmp_path, jobs=2)[1] == {}
    with pytest.raises(ValueError, match="2 runs would share a device: the budget of arm 'mqar-softmax' is in seconds"):
        run_in_processes(timed, tmp_path, jobs=3)


@pytest.mark.gpu
def test_forked_runs_can_use_the_gpu(tmp_path: Path) -> None:
    root, failures = run_in_processes(load_preset(TINY), tmp_path, jobs=1, preset=TINY, device="cuda")
    assert failures == {}
    assert {run.status["status"] for run in load_runs(root)} == {"complete"}


def test_the_longest_run_of_a_seed_starts_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(_Worker, "run", lambda self, job: started.append((job["arm"], job["seed"])))
    tiny = load_preset(TINY)
    arm = tiny.arms[0]
    arms = tuple(replace(arm, name=f"{flops / 1e9:g}", budget=Budget(flops=flops)) for flops in (2e10, 8e10, 4e10))
    run_in_processes(replace(tiny, arms=arms, seeds=(0, 1)), tmp_path, jobs=1, device="cpu")
    assert started == [(arm, seed) for seed in (0, 1) for arm in ("80", "40", "20")]


def test_gpus_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _gpus("auto") == ["0", "1"]
    assert _gpus("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert _gpus("cuda") == ["3", "5"]


def test_impossible_launches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_preset(TINY)
    timed = replace(tiny, arms=(replace(tiny.arms[0], budget=Budget(seconds=1.0)),))
    with pytest.raises(ValueError, match="jobs = 0: must be at least 1"):
        run_in_processes(tiny, tmp_path, jobs=0)
    with pytest.raises(ValueError, match="2 runs would share a device: the budget of arm 'mqar-softmax' is in seconds"):
        run_in_processes(replace(timed, seeds=(0, 1)), tmp_path, jobs=8, device="cpu")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=lambda **_: pytest.fail("a cluster was started")))
    with pytest.raises(ValueError, match="device = 'gpu'"):
        run_on_ray(tiny, tmp_path, device="gpu")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"the Ray launcher needs Ray: pip install 'icl-eval\[ray\]'"):
        run_on_ray(tiny, tmp_path)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Ray cluster of two workers in this machine."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.slow
def test_a_sweep_on_ray_survives_a_dead_worker(cluster: None, preset: Path, undisturbed: Path, tmp_path: Path) -> None:
    root, failures = run_on_ray(load_preset(str(preset)), tmp_path / "runs", preset=str(preset), device="cpu")
    assert (tmp_path / "killed").exists()
    assert failures == {}
    assert_identical(undisturbed, root)


def heed_interrupts() -> None:
    """Shells have their background processes ignore interrupts, and so do the processes that those start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_an_interrupt_ends_all_processes(tmp_path: Path) -> None:
    preset = tmp_path / "long.py"
    preset.write_text(f"""
from dataclasses import replace
from icl_eval import Budget
from icl_eval.presets import load_preset

def experiment():
    tiny = load_preset({TINY!r})
    return replace(tiny, arms=tuple(replace(arm, budget=Budget(flops=1e13)) for arm in tiny.arms))
""")
    out = tmp_path / "runs"
    command = [sys.executable, "-m", "icl_eval.cli", "run", str(preset), "--out", str(out), "--device", "cpu"]
    parent = subprocess.Popen([*command, "--jobs", "2"], stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts)
    deadline = time.monotonic() + 120
    while len(begun := list(out.rglob("config.json"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 130
    assert "interrupted: the same command resumes" in errors
    for config in begun:
        with RunFolder(config.parent).locked():
            pass
    assert len(list(out.rglob("config.json"))) == 2
