"""What a model makes of its context: how far it reaches, what it gains, how fast, and what lies beyond training.

Every function takes the runs of one arm, as in :mod:`icl_eval.statistics`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from icl_eval.positions import Positions
from icl_eval.statistics import (
    CONFIDENCE,
    Estimate,
    Metric,
    best_context_loss,
    bins_by_seed,
    resampled_bins,
    resampled_documents,
    seed_strays,
    well_reached,
)

SMALLEST_GAIN = 0.01
"""A loss that falls by less (nats a token, or bits a byte) is taken to stay as it is."""
MIN_DOCUMENTS = 4
ROUNDING = 1e-9
"""Losses (nats a token, or bits a byte) that differ by less are the same."""


class UsefulContext(NamedTuple):
    """The position beyond which more context gains nothing, and the limits of its 95 % interval.

    Attributes:
        value: last position of the last bin whose loss exceeds the best-context loss by more than the smallest gain;
            0 where none does.
        low: the same where the excess is significant: context is worth something up to here at least.
        high: the same where such an excess cannot be excluded: beyond, context is worth nothing.
    """

    value: int
    low: int
    high: int


def useful_context(
    runs: Sequence[Positions], metric: Metric = "nll", smallest: float = SMALLEST_GAIN
) -> UsefulContext | None:
    """How far context is worth something; ``None`` with too few documents to tell.

    Every second document chooses the best bin, the others compare the bins before it with it, all at once: the
    intervals hold simultaneously over the bins, so testing many of them finds no gain where there is none.
    """
    if len(runs[0].documents) < MIN_DOCUMENTS:
        return None
    best, judges = _best_bin(runs, metric)
    edges = runs[0].bin_edges
    before = np.flatnonzero(well_reached(judges[0].document_count)[:best])
    if len(before) == 0:
        return UsefulContext(0, 0, 0)

    def drawn_at(confidence: float) -> np.ndarray:
        drawn = resampled_documents(judges, metric, confidence)
        return drawn[:, before] - drawn[:, best, None]

    by_seed = bins_by_seed(judges, metric)
    excess = simultaneous(drawn_at, seed_strays(by_seed[:, before] - by_seed[:, best, None]))
    reach = [edges[before + 1][limit > smallest] - 1 for limit in (excess.value, excess.low, excess.high)]
    return UsefulContext(*(int(positions.max(initial=0)) for positions in reach))


def fall_per_octave(runs: Sequence[Positions], first: int, last: int, metric: Metric = "nll") -> Estimate:
    """How much the loss falls with every doubling of context between two positions, by least squares over bins.

    Raises:
        ValueError: fewer than two bins lie between.
    """
    edges = runs[0].bin_edges
    filled = runs[0].document_count.sum(axis=0) > 0
    inside = np.flatnonzero(filled & (edges[:-1] >= first) & (edges[1:] - 1 <= last))
    if len(inside) < 2:
        raise ValueError(f"fewer than two bins lie between positions {first} and {last}")
    octave = np.log2(np.sqrt(edges[inside] * (edges[inside + 1] - 1.0)))
    octave -= octave.mean()
    drawn = resampled_bins(runs, metric=metric)[:, inside]
    return _estimate(-(drawn @ octave) / (octave**2).sum())


def extrapolation(runs: Sequence[Positions], trained_context: int, metric: Metric = "nll") -> Estimate | None:
    """Loss in the last octave of the context less that in the last octave of the training context.

    Positive where the model loses by reading on; ``None`` where nothing was measured beyond twice the training context.
    """
    edges = runs[0].bin_edges
    starts, ends = edges[:-1], edges[1:] - 1
    filled = runs[0].document_count.sum(axis=0) > 0
    last = int(ends[filled].max())
    within = filled & (ends <= trained_context) & (2 * starts > trained_context)
    beyond = filled & (starts > trained_context) & (2 * starts > last)
    if not within.any() or not beyond.any():
        return None
    drawn = resampled_bins(runs, np.stack([within, beyond], axis=1).astype(float), metric)
    return _estimate(drawn[:, 1] - drawn[:, 0])


def simultaneous(drawn_at: Callable[[float], np.ndarray], strays: np.ndarray) -> Estimate:
    """Values ``[K]`` with intervals that hold for all of them at once, with 95 %: the max-\\|t\\| bootstrap.

    The resamples tell how far the worst of the K strays; what confidence that is for one alone decides by how much few
    documents widen the intervals. Values that are not finite have none.

    Args:
        drawn_at: gives values and resamples over documents ``[1 + RESAMPLES, K]`` for intervals of a confidence;
            resamples are NaN where they hold no document of a value's.
        strays: what seeds add to the resamples, of :func:`~icl_eval.statistics.seed_strays`.
    """
    drawn = drawn_at(CONFIDENCE)
    value, resamples = drawn[0], drawn[1:] + strays
    known = np.isfinite(value) & np.isfinite(strays).all(axis=0)
    error = np.full(len(value), np.nan)
    error[known] = np.nanstd(resamples[:, known], axis=0)
    if not (spread := error > ROUNDING).any():
        width = np.where(known, ROUNDING, np.nan)
        return Estimate(value, value - width, value + width)
    farthest = np.nan_to_num(np.abs(resamples - value)[:, spread] / error[spread]).max(axis=1)
    critical = np.quantile(farthest, CONFIDENCE)
    width = np.full(len(value), np.nan)
    widened = drawn_at(2 * special.ndtr(critical) - 1)[1:, known] + strays[:, known]
    width[known] = np.maximum(critical * np.nanstd(widened, axis=0), ROUNDING)
    return Estimate(value, value - width, value + width)


def _best_bin(runs: Sequence[Positions], metric: Metric) -> tuple[int, list[Positions]]:
    """The bin of the best-context loss, and the documents that did not choose it."""
    choosers, judges = ([run.of(run.documents[half::2]) for run in runs] for half in (0, 1))
    return _bin(runs, best_context_loss(choosers, metric=metric).start), judges


def _bin(runs: Sequence[Positions], position: int) -> int:
    return int(np.searchsorted(runs[0].bin_edges, position, side="right")) - 1


def _estimate(drawn: np.ndarray) -> Estimate:
    tail = 100 * (1 - CONFIDENCE) / 2
    return Estimate(drawn[0], *np.nanpercentile(drawn[1:], [tail, 100 - tail]))
