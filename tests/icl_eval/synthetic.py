"""Run folders of experiments that were never trained: losses by position are a formula with noise."""

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from icl_eval import Arm, Experiment, statistics
from icl_eval.positions import Positions, log_bin_edges
from icl_eval.run import describe, make_accelerator
from icl_eval.run_folder import RunFolder, to_json, write_atomically
from icl_eval.schedule import make_plan

DOCUMENTS = 12
TUNED = {
    "learning_rate": 2e-3, "at_edge": False, "learning_rates": [5e-4, 1e-3, 2e-3, 4e-3], "losses": [1.7, 1.6, 1.5, 1.6]
}  # fmt: skip
"""As ``icl_eval.tuning.apply_ledger`` records it."""
Loss = Callable[[Arm, np.ndarray, float], np.ndarray]
"""Expected loss (nats) of an arm by position, at a share of the budget."""


def falling(**curves: tuple[float, float, float]) -> Loss:
    """Losses that fall by ``rate`` nats an octave from ``level`` up to position ``until``, and more with training.

    Args:
        curves: level, rate and until, by the name of the arm or of its mixer.
    """

    def loss(arm: Arm, position: np.ndarray, share: float) -> np.ndarray:
        level, rate, until = curves.get(arm.name.replace("-", "_")) or curves[arm.model.mixers[0].name]
        grown = rate * (1 + 0.1 * math.log2(share))
        return level - 0.05 * math.log2(share) - grown * np.log2(np.minimum(np.maximum(position, 1), until))

    return loss


def write_study(
    out: Path,
    experiment: Experiment,
    loss: Loss,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    tuning: dict[str, Any] | None = TUNED,
    seconds_per_flop: float = 1e-14,
    noise: float = 0.003,
    skip: Sequence[tuple[str, int]] = (),
    diverged: Sequence[tuple[str, int]] = (),
) -> Path:
    """Write the folders of an experiment's runs; returns the experiment's folder.

    Args:
        out: where the experiment's folder goes.
        experiment: what was not trained.
        loss: of its arms.
        seeds: of its runs.
        tuning: ledger of the learning rates; ``None`` leaves it out.
        seconds_per_flop: time of training.
        noise: standard deviation of losses between documents, beyond what all arms share, and between seeds.
        skip: arms and seeds that never finished.
        diverged: arms and seeds that ended in NaN.
    """
    root = out / experiment.name
    write_atomically(root / "experiment.json", to_json(replace(experiment, seeds=tuple(seeds)).to_dict()))
    for arm in experiment.arms:
        config = _config(arm)
        for seed in seeds:
            if (arm.name, seed) in skip:
                continue
            folder = RunFolder(root / arm.name / f"seed{seed}")
            ledger = {} if tuning is None else {"tuning": tuning}
            env = {"commit": "0" * 12, "device": "GPU", "runs_per_device": 1}
            splits = {"train": {"documents": 50, "tokens": 10**6}, "heldout": {"documents": 9, "tokens": 10**5}}
            folder.begin({**config, "seed": seed, **ledger}, env, {"sha256": "ab" * 32, "splits": splits}, None)
            folder.save_positions(_positions(arm, seed, loss, seconds_per_flop, noise))
            status = "nan" if (arm.name, seed) in diverged else "complete"
            folder.finish(status=status, step=arm.schedule().steps, seconds=1.0)
    return root


@pytest.fixture(autouse=True, scope="module")
def few_resamples() -> Iterator[None]:
    """Worlds that are clear need no more; to be imported by the modules of tests that want it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "RESAMPLES", 300)
        yield


@cache
def _config(arm: Arm) -> dict[str, Any]:
    return describe(arm, 0, arm.schedule(), make_plan(arm, arm.schedule().steps, 1), make_accelerator("cpu"))


def _positions(arm: Arm, seed: int, loss: Loss, seconds_per_flop: float, noise: float) -> Positions:
    edges = log_bin_edges(arm.task.num_positions)
    shares = np.array(arm.training.branches)
    steps = np.array([arm.steps_at(share, arm.schedule().steps) for share in shares])
    flops = np.array([arm.flops_after(step) for step in steps])
    rng = np.random.default_rng([seed, zlib.crc32(arm.name.encode())])
    documents = np.random.default_rng(0).normal(0.0, 0.2, (DOCUMENTS, 1))
    counts = np.tile(np.diff(edges).astype(float), (DOCUMENTS, 1))
    counts[:, 0] = 0
    middle = np.sqrt(np.maximum(edges[:-1], 1) * np.maximum(edges[1:] - 1, 1))
    means = np.stack([documents + loss(arm, middle, share) for share in shares])
    means = means + rng.normal(0.0, noise, means.shape) + rng.normal(0.0, noise)
    sums = means * counts
    by_position = np.zeros((len(shares), 1))
    return Positions(
        step=steps, tokens=steps * arm.tokens_per_step, flops=flops,
        seconds=flops * seconds_per_flop, nll_sum=by_position, nll_square_sum=by_position,
        correct=by_position, document_nll_sum=sums, document_correct=0 * sums, count=by_position[0],
        documents=np.arange(DOCUMENTS), bin_edges=edges, document_count=counts,
    )  # fmt: skip
