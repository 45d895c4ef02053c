"""kill -9 at any moment, and the same command again: the same numbers, bit for bit."""

import random
import signal
import time
from pathlib import Path

import pytest

from icl_eval import load_runs
from icl_eval.run_folder import RunFolderError
from tests.icl_eval.processes import start
from tests.icl_eval.test_run import assert_identical

PRESET = f"""
from dataclasses import replace
from icl_eval.presets import load_preset

def experiment():
    tiny = load_preset({str(Path(__file__).parent / "tiny.py")!r})
    cosine, power, text = tiny.arms
    branched = replace(power, training=replace(power.training, schedule="branched"))
    return replace(tiny, arms=(replace(cosine, training=replace(cosine.training, micro_batch_size=3)), branched, text))
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("preset") / "faults.py"
    file.write_text(PRESET)
    return file


@pytest.mark.slow  # six minutes; test_schedule kills a run on its trunk and on a branch
@pytest.mark.timeout(1200)
def test_twenty_kills_and_the_same_numbers(preset: Path, tmp_path: Path) -> None:
    """Killed at random moments and started again, from the beginning wherever the experiment got to its end."""
    started = time.perf_counter()
    process = start(preset, tmp_path / "whole", log_every=2)
    process.join()
    seconds = time.perf_counter() - started
    (whole,) = (tmp_path / "whole").iterdir()
    moments = random.Random(0)
    done = struck = 0
    while struck < 20 or done == 0:
        process = start(preset, tmp_path / str(done), log_every=2)
        process.join(moments.uniform(0, seconds) if struck < 20 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            struck += 1
            assert process.exitcode in (-signal.SIGKILL, 0)
        if process.exitcode == 0:
            assert_identical(whole, next((tmp_path / str(done)).iterdir()))
            done += 1


def test_a_killed_run_is_not_a_result(preset: Path, tmp_path: Path) -> None:
    process = start(preset, tmp_path, kill_at=5)
    process.join()
    assert list(tmp_path.rglob("config.json"))
    with pytest.raises(RunFolderError, match="holds no finished run"):
        load_runs(tmp_path)
