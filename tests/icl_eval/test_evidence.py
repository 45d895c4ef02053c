"""Losses of arms on few books of unequal length, whose truth is known."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from icl_eval.contrasts import dominates
from icl_eval.evidence import ArmRuns, Evidence
from icl_eval.positions import log_bin_edges
from icl_eval.presets import load_preset
from icl_eval.statistics import estimate, resampled_bins
from tests.icl_eval.synthetic import few_resamples  # noqa: F401
from tests.icl_eval.test_statistics import positions

ARMS = load_preset("fig9_long_context", "h200").arms
EDGES = log_bin_edges(65_536)
WIDTHS = np.diff(EDGES)
WINDOWS = np.array([7, 34, 2, 1, 1, 1, 2, 19, 7])
"""Of nine held-out books, at the central context."""
ENDS = np.array([0.25, 0.5, 1.0])


def evidence(losses: Sequence[Sequence[np.ndarray]]) -> Evidence:
    """Of losses ``[3, N, bins]`` of every arm and seed, at a quarter, half and the whole budget."""
    return Evidence(
        tuple(
            ArmRuns(arm.name, tuple(_run(arm, seed, loss) for seed, loss in enumerate(seeds)))
            for arm, seeds in zip(ARMS, losses, strict=False)
        )
    )


def _run(arm, seed: int, loss: np.ndarray):  # type: ignore[no-untyped-def]
    count = WINDOWS[:, None] * WIDTHS.astype(float)
    count[:, 0] = 0
    measured = replace(
        positions(np.zeros(count.shape)), step=1000 * ENDS, tokens=1e8 * ENDS, flops=2.2e16 * ENDS,
        seconds=600 * ENDS, bin_edges=EDGES, document_count=count, document_nll_sum=loss * count,
    )  # fmt: skip
    return SimpleNamespace(seed=seed, arm=arm, positions=measured, diverged=False)


def tie(rng: np.random.Generator, ahead: float = 0.0) -> Evidence:
    """Three seeds of linear, softmax and power, whose loss falls to 1.15 nats early in the context and then no more.

    Books differ by 0.17 nats, and by 0.015 in how far apart the arms are; every token's loss strays by 2 nats, alike in
    all arms but for a fifth; seeds differ by 0.004.

    Args:
        rng: of everything.
        ahead: nats by which power is better.
    """
    count = WINDOWS[:, None] * WIDTHS
    curve = 1.15 + 1.8 * np.maximum(EDGES[1:] - 1, 1) ** -0.8 - 0.08 * np.log2(ENDS)[:, None, None]
    books = rng.normal(0, 0.17, (len(WINDOWS), 1)) + rng.normal(0, 2, count.shape) / np.sqrt(count)
    losses = []
    for arm in ARMS:
        own = rng.normal(0, 0.015 / np.sqrt(2), (len(WINDOWS), 1)) - ahead * (arm.name == "power")
        seeds = [
            rng.normal(0, 0.004) + rng.normal(0, 0.4, (len(ENDS), *count.shape)) / np.sqrt(count) for _ in range(3)
        ]
        losses.append([curve + books + own + seed for seed in seeds])
    return evidence(losses)


def test_every_book_counts_once_however_many_windows_of_it_were_read() -> None:
    books = np.random.default_rng(0).normal(1.2, 0.2, (len(WINDOWS), 1))
    shape = (len(ENDS), len(WINDOWS), len(WIDTHS))
    found = evidence([[np.broadcast_to(books, shape)]])
    (arm,) = found.arms
    for loss in (found.best(arm), found.octave(arm, 65_536)):
        assert loss[0] == pytest.approx(books.mean())


def test_claims_and_tables_weigh_books_alike() -> None:
    found = tie(np.random.default_rng(2))
    arm = found.arms[0]
    last = (EDGES[:-1] > 32_768)[:, None].astype(float)
    table = resampled_bins(arm.positions, last)[:, 0]
    claim = found.octave(arm, 65_536)
    assert table[0] == pytest.approx(claim[0])
    np.testing.assert_allclose(table[1:], claim[-len(table[1:]) :])


def test_arms_that_choose_other_bins_keep_the_books_in_the_same_proportion() -> None:
    """Books differ by up to 2 nats, and bins by so little that which is best is another in every arm and book."""
    rng = np.random.default_rng(1)
    books = np.linspace(0.2, 2.2, len(WINDOWS))[:, None]
    shape = (len(ENDS), len(WINDOWS), len(WIDTHS))
    found = evidence([[books + rng.normal(0, 1e-6, shape)] for _ in range(2)])
    one, other = (found.best(arm) for arm in found.arms)
    value, low, high = estimate(one - other)
    assert -1e-5 < low < value < high < 1e-5


def test_best_context_loss_is_that_of_the_bin_and_not_of_noise() -> None:
    """The first positions hold a token a window, and their losses are lowest by chance where books are few."""
    losses = []
    for seed in range(40):
        found = tie(np.random.default_rng(seed))
        losses.append(found.best(found.pick("linear"))[0])
    assert np.mean(losses) == pytest.approx(1.15, abs=3 * 0.18 / np.sqrt(9 * 40))


def test_intervals_over_books_of_unequal_length_cover_the_truth() -> None:
    missed = 0
    for seed in range(300):
        books = np.random.default_rng(seed).normal(0, 0.1, (len(WINDOWS), 1))
        found = evidence([[np.broadcast_to(books, (len(ENDS), len(WINDOWS), len(WIDTHS)))]])
        _, low, high = estimate(found.octave(found.arms[0], 65_536))
        missed += not low < 0 < high
    assert missed / 300 <= 0.07


def test_a_twentieth_of_a_nat_is_found_and_a_tie_is_none() -> None:
    """Over the six contrasts of the central claim."""
    supported, decided = [], 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        for ahead in (0.0, 0.05):
            bounds = [estimate(drawn) for _, drawn, _ in dominates("flops")(tie(rng, ahead))]
            if ahead:
                supported.append(np.mean([low > 0 for _, low, _ in bounds]))
            else:
                decided += all(low > 0 for _, low, _ in bounds) or any(high < 0 for _, _, high in bounds)
    assert np.mean(supported) > 0.8
    assert decided <= 3
