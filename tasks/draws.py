"""Random draws that several tasks share, for many sequences at once."""

import numpy as np


def distinct(rng: np.random.Generator, rows: int, size: int, count: int) -> np.ndarray:
    """int64 ``[rows, count]`` numbers below ``size``, distinct within a row, all ordered choices equally likely.

    Numbers drawn twice are drawn anew, which favours none of them; where most are wanted, a permutation is cut.
    """
    if size <= 2 * count:
        return rng.permuted(np.tile(np.arange(size), (rows, 1)), axis=1)[:, :count]
    drawn = rng.integers(0, size, (rows, count))
    open_rows = np.arange(rows)
    while len(open_rows):
        repeated = occurrences(drawn[open_rows])[0] > 0
        drawn[open_rows] = np.where(repeated, rng.integers(0, size, repeated.shape), drawn[open_rows])
        open_rows = open_rows[repeated.any(axis=1)]
    return drawn


def ascending(rng: np.random.Generator, rows: int, size: int, count: int) -> np.ndarray:
    """int64 ``[rows, count]`` distinct numbers below ``size`` in ascending order, all choices equally likely."""
    return np.sort(distinct(rng, rows, size, count), axis=1)


def log_uniform(rng: np.random.Generator, low: int, high: int, rows: int) -> np.ndarray:
    """int64 ``[rows]`` numbers in ``[low, high]``, n with probability ``log(1 + 1/n)`` in proportion."""
    edges = np.log(np.arange(low, high + 2) / low)
    return low + np.searchsorted(edges[1:-1] / edges[-1], rng.random(rows), side="right")


def occurrences(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every label of a row, how often and where the row held it before.

    Args:
        labels: integers of at least 0, ``[rows, count]``.

    Returns:
        int64 ``[rows, count]`` each: the number of earlier occurrences, and the column of the last of them (-1 for
        none).
    """
    rows, count = labels.shape
    columns = np.sort(labels * count + np.arange(count), axis=1) % count
    ordered = np.take_along_axis(labels, columns, axis=1)
    same = np.zeros((rows, count), bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    place = np.arange(count)
    group_start = np.maximum.accumulate(np.where(same, 0, place), axis=1)
    earlier, last = np.empty((rows, count), np.int64), np.full((rows, count), -1)
    np.put_along_axis(earlier, columns, place - group_start, axis=1)
    np.put_along_axis(last, columns, np.where(same, np.roll(columns, 1, axis=1), -1), axis=1)
    return earlier, last
