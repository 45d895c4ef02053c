"""Two processes do what one does: with a whole model each, or half of one."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate import Accelerator

from icl_eval import Arm, Budget, Experiment, Training, load_runs
from icl_eval.models import Linear, ModelConfig
from icl_eval.run import make_accelerator, run_experiment
from icl_eval.tasks import Files
from tests.icl_eval.processes import start

PRESET = f"""
from dataclasses import replace
from icl_eval.presets import load_preset

def experiment():
    tiny = load_preset({str(Path(__file__).parent / "tiny.py")!r})
    # At a high rate a few dozen steps amplify the rounding of sums in another order past any tolerance.
    calm = dict(learning_rate=1e-3, final_learning_rate=1e-4)
    plain, power, tied = (replace(arm, training=replace(arm.training, **calm)) for arm in tiny.arms)
    saving = replace(power.training, schedule="branched", micro_batch_size=1, activation_checkpointing=True)
    return replace(tiny, arms=(plain, replace(power, training=saving), tied), eval_sequences=24)
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("preset") / "distributed.py"
    file.write_text(PRESET)
    return file


@pytest.fixture(scope="module")
def alone(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    process = start(preset, out, log_every=10)
    process.join()
    assert process.exitcode == 0
    return out


@pytest.mark.parametrize(
    "module",
    [
        pytest.param("icl_eval.cli", id="ddp"),
        pytest.param("tests.icl_eval.sharded_on_cpu", id="fsdp2", marks=pytest.mark.slow),
    ],
)
def test_two_processes_give_the_losses_of_one(module: str, preset: Path, alone: Path, tmp_path: Path) -> None:
    """Three batches are measured: one of the processes has none in the last round."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", module]
    arguments = ["run", str(preset), "--device", "cpu", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for one, two in zip(load_runs(alone), load_runs(tmp_path), strict=True):
        assert two.config["processes"] == 2
        assert two.config["sharding"] == ("none" if module == "icl_eval.cli" else "fsdp2")
        np.testing.assert_allclose(two.metrics["loss"], one.metrics["loss"], rtol=1e-5)
        assert two.metrics["gradient_norm"][0] == pytest.approx(one.metrics["gradient_norm"][0], rel=1e-5)
        assert one.positions is not None
        assert two.positions is not None
        np.testing.assert_array_equal(two.positions.document_count, one.positions.document_count)
        np.testing.assert_allclose(two.positions.nll_sum.sum(1), one.positions.nll_sum.sum(1), rtol=1e-5)


@pytest.mark.parametrize("field", ["batch_size", "start_batch_size"])
def test_every_process_needs_a_sequence(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 3)
    training = Training(batch_size=8, start_context=16, start_tokens=64, start_batch_size=4)
    task = Files(path="nowhere", seq_len=32)
    arm = Arm(
        name="few", task=task, model=ModelConfig(mixers=(Linear(),)), training=replace(training, **{field: 2}),
        budget=Budget(tokens=1e6),
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"arm 'few': {field} = 2 is smaller than the number of processes, 3"):
        run_experiment(Experiment(name="small", question="Does it run?", arms=(arm,)), tmp_path, device="cpu")


def test_sharding_needs_something_to_share_with() -> None:
    with pytest.raises(ValueError, match="sharding = 'fsdp2': there is one process"):
        make_accelerator("cpu", "fsdp2")
    with pytest.raises(ValueError, match="sharding = 'fsdp': must be 'none' or 'fsdp2'"):
        make_accelerator("cpu", "fsdp")
