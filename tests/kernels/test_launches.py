"""What reaches the GPU driver, checked without a GPU: kernels are compiled for Hopper and their launches recorded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

TRAINING_LAUNCHES = 19
"""Of a forward and backward pass with gates, row-sum normalised degree 2 and several chunks, by Hopper's kernels."""
PORTABLE_LAUNCHES = 21
"""Of one with heads of 16, which Triton's take."""
TRAINING_KERNELS = 16
"""Compiled for it: some are launched more than once."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    cache = str(tmp_path_factory.mktemp("cache"))
    result = subprocess.run(
        [sys.executable, "-m", "tests.kernels.dry_driver"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache, "TRITON_DISABLE_LINE_INFO": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def test_a_looked_up_kernel_gets_the_arguments_triton_gives(recorded: Any) -> None:
    assert recorded["by_look_up"] == recorded["by_triton"]
    names = [name for name, *_ in recorded["by_look_up"]]
    assert names.count("step_kernel") == 6
    assert (
        len(names) - names.count("step_kernel") - names.count("combine_kernel") == TRAINING_LAUNCHES + PORTABLE_LAUNCHES
    )


def test_a_profilers_hook_sees_every_launch(recorded: Any) -> None:
    assert recorded["hooked"] == recorded["unhooked"]
    assert recorded["seen"] == [name for name, *_ in recorded["hooked"]]


def test_a_first_training_call_compiles_little_that_its_self_check_did_not(recorded: Any) -> None:
    """What differs are small kernels: strides of the gates, and how many elements a scan's program carries."""
    counts = recorded["counts"]
    assert counts["self-check"] == TRAINING_KERNELS
    assert counts["first call"] <= counts["self-check"] + 4


def test_other_lengths_and_head_counts_compile_no_large_kernel_anew(recorded: Any) -> None:
    counts = recorded["counts"]
    assert counts["other sizes"] <= counts["first call"] + 4
