"""Draws: distinct, uniform, and counted against slow loops."""

from itertools import permutations

import numpy as np
import pytest

from icl_eval.tasks.draws import ascending, distinct, log_uniform, occurrences


@pytest.mark.parametrize(("size", "count"), [(4, 3), (7, 2)], ids=["cut from a permutation", "drawn anew"])
def test_all_ordered_choices_are_equally_likely(size: int, count: int) -> None:
    drawn = distinct(np.random.default_rng(0), 20_000, size, count)
    weights = size ** np.arange(count)
    codes = [sum(choice * weights) for choice in permutations(range(size), count)]
    frequency = np.bincount(drawn @ weights, minlength=size**count)
    expected = 20_000 / len(codes)
    assert frequency.sum() == frequency[codes].sum() == 20_000
    assert np.abs(frequency[codes] - expected).max() < 4.5 * expected**0.5


@pytest.mark.parametrize(("size", "count"), [(10**15, 1000), (1000, 400), (5, 5), (3, 1)])
def test_numbers_are_distinct_within_a_row(size: int, count: int) -> None:
    drawn = distinct(np.random.default_rng(1), 20, size, count)
    assert all(len(set(row)) == count for row in drawn.tolist())
    assert 0 <= drawn.min() <= drawn.max() < size
    ordered = ascending(np.random.default_rng(1), 20, size, count)
    assert (np.diff(ordered, axis=1) > 0).all()


def test_nothing_drawn_is_an_empty_array() -> None:
    assert distinct(np.random.default_rng(0), 3, 10, 0).shape == (3, 0)


def test_log_uniform_follows_its_probabilities() -> None:
    drawn = log_uniform(np.random.default_rng(0), 3, 9, 50_000)
    expected = np.log1p(1 / np.arange(3, 10)) / np.log(10 / 3)
    assert np.bincount(drawn, minlength=10)[3:] / 50_000 == pytest.approx(expected, abs=0.01)
    assert (log_uniform(np.random.default_rng(0), 5, 5, 10) == 5).all()


def test_occurrences_against_a_loop() -> None:
    labels = np.random.default_rng(0).integers(0, 6, (10, 30))
    earlier, last = occurrences(labels)
    for row, counts, columns in zip(labels.tolist(), earlier.tolist(), last.tolist(), strict=True):
        for t, label in enumerate(row):
            before = [s for s in range(t) if row[s] == label]
            assert counts[t] == len(before)
            assert columns[t] == (before[-1] if before else -1)
