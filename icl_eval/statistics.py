"""Estimates with intervals from measured positions: paired bootstrap over held-out documents, seeds nested.

Every function takes the runs of one arm, one :class:`Positions` a seed, measured on the same documents. Every document
counts once, however much of it was read (:func:`each_once`). Resamples are drawn from a fixed stream, so that two arms
measured on the same documents are resampled alike: their differences are paired.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from icl_eval.positions import Positions

Metric = Literal["nll", "bits_per_byte", "accuracy"]
"""Nats per scored token, bits per byte of scored text, and the share of scored tokens predicted right."""
RESAMPLES = 2000
CONFIDENCE = 0.95
POOLED_BINS = 4
"""Bins on either side (of half an octave each in most measurements) that a bin's variance between seeds is pooled with
where many bins are judged at once."""
SMALLEST_SHARE = 0.03
"""Of the fullest bin's tokens, below which a bin cannot be the best. It leaves about the last five octaves of a
context: earlier bins hold so few tokens of a sequence that their losses tell more of those than of the model."""


class Estimate(NamedTuple):
    """A mean and the limits of its 95 % interval, in the metric's unit; scalars or one a bin."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Curve(NamedTuple):
    """A metric by position.

    Attributes:
        start, end: first and last position of each bin.
        estimate: the metric in each bin.
    """

    start: np.ndarray
    end: np.ndarray
    estimate: Estimate

    @property
    def center(self) -> np.ndarray:
        """Geometric centres, for a log axis."""
        return np.sqrt(np.maximum(self.start, 0.5) * np.maximum(self.end, 0.5))


class BestContext(NamedTuple):
    """Best-context loss (paper section 4): the loss in the bin of positions where it is lowest.

    Attributes:
        estimate: in the metric's unit, cross-fitted as in :func:`cross_fitted`.
        start, end: first and last position of the bin that all documents together choose.
    """

    estimate: Estimate
    start: int
    end: int


def curve(runs: Sequence[Positions], metric: Metric = "nll", snapshot: int = -1) -> Curve:
    """A metric by position, in the bins of the measurement that hold scored tokens.

    Raises:
        ValueError: bits per byte are asked for where no bytes were kept, here and in the functions below.
    """
    sums, counts = _by_document(runs, metric, snapshot)
    filled = counts.sum(axis=0) > 0
    edges = runs[0].bin_edges
    estimate = _bootstrap(sums[:, :, filled], counts[:, filled])
    return Curve(edges[:-1][filled], edges[1:][filled] - 1, estimate)


def overall(runs: Sequence[Positions], metric: Metric = "nll", snapshot: int = -1) -> Estimate:
    """A metric over all positions."""
    sums, counts = _by_document(runs, metric, snapshot)
    bounds = _bootstrap(sums.sum(axis=2, keepdims=True), counts.sum(axis=1, keepdims=True))
    # Intervals are widened for few seeds and documents, past what a share can be.
    return Estimate(*(bound[0].clip(0, 1) if metric == "accuracy" else bound[0] for bound in bounds))


def best_context_loss(runs: Sequence[Positions], snapshot: int = -1, metric: Metric = "nll") -> BestContext:
    """Loss in the best bin, of those that :func:`can_be_best`."""
    sums, counts = _by_document(runs, metric, snapshot)
    losses, reached = cross_fitted(sums, counts)
    estimate = _bootstrap(losses[..., None], reached[:, None].astype(float))
    means = _divide(sums.mean(axis=0).sum(axis=0), counts.sum(axis=0))
    best = int(np.where(can_be_best(counts) & np.isfinite(means), means, np.inf).argmin())
    edges = runs[0].bin_edges
    return BestContext(Estimate(*(bound[0] for bound in estimate)), int(edges[best]), int(edges[best + 1]) - 1)


def cross_fitted(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best-context losses by document, each half of the documents judged in the bin that the other half chooses.

    A minimum over noisy bins would flatter; a bin chosen elsewhere does not. Halves, since among bins that are nearly
    equal a document left out alone would choose, by its absence, those in which it is worst: as fair, but of 1.5 to 1.8
    times the standard deviation in simulations of flat curves.

    Args:
        sums: ``[seeds, N, bins]``.
        counts: ``[N, bins]``.

    Returns:
        Losses ``[seeds, N]``, and which documents reach the bin chosen for them ``[N]``; the losses of others are 0.
    """
    losses, reached = np.zeros(sums.shape[:2]), np.zeros(len(counts), bool)
    halves = slice(0, None, 2), slice(1, None, 2)
    eligible = can_be_best(counts)
    for judged, chosen_by in (halves, halves[::-1]):
        means = _divide(sums[:, chosen_by].mean(axis=0).sum(axis=0), counts[chosen_by].sum(axis=0))
        if not (eligible & np.isfinite(means)).any():
            continue
        best = int(np.where(eligible & np.isfinite(means), means, np.inf).argmin())
        reached[judged] = counts[judged, best] > 0
        losses[:, judged] = sums[:, judged, best] / np.where(reached[judged], counts[judged, best], 1)
    return np.where(reached, losses, 0), reached


def well_reached(*counts: np.ndarray) -> np.ndarray:
    """Bins that in each of the counts ``[N, bins]`` at least half as many documents reach as the fullest bin."""
    coverage = np.minimum.reduce([(count > 0).mean(axis=0) for count in counts])
    return coverage >= max(coverage.max() / 2, 1e-9)


def can_be_best(*counts: np.ndarray) -> np.ndarray:
    """Bins that are :func:`well_reached` and hold at least ``SMALLEST_SHARE`` of what the fullest bin holds."""
    total = np.minimum.reduce([count.sum(axis=0) for count in counts])
    return well_reached(*counts) & (total >= SMALLEST_SHARE * total.max())


def context_gain(runs: Sequence[Positions], early: int, snapshot: int = -1, metric: Metric = "nll") -> Estimate:
    """What context is worth: loss in the bin of position ``early`` less the loss in the last bin."""
    sums, counts = _by_document(runs, metric, snapshot)
    at = int(np.searchsorted(runs[0].bin_edges, early, side="right")) - 1
    first, last = (_resampled(sums[:, :, bin, None], counts[:, bin, None]) for bin in (at, -1))
    return Estimate(*(bound[0] for bound in _interval(first.value - last.value, first.resamples - last.resamples)))


def icl_gain(runs: Sequence[Positions], early: int, metric: Metric = "nll") -> Estimate:
    """In-context learning's gain: loss in the bin of position ``early`` less the best-context loss."""
    sums, counts = _by_document(runs, metric, snapshot=-1)
    losses, reached = cross_fitted(sums, counts)
    at = int(np.searchsorted(runs[0].bin_edges, early, side="right")) - 1
    ratio = _resampled(np.stack([sums[..., at], losses], axis=-1), np.stack([counts[:, at], reached], axis=-1))
    return Estimate(*(bound.item() for bound in _interval(*(x[..., :1] - x[..., 1:] for x in ratio))))


def resampled_bins(
    runs: Sequence[Positions],
    groups: np.ndarray | None = None,
    metric: Metric = "nll",
    snapshot: int = -1,
) -> np.ndarray:
    """A metric in groups of bins as ``[1 + RESAMPLES, G]``: its values, then its resamples, paired over everything.

    Args:
        runs: of one arm.
        groups: ``[bins, G]``, 1 where a bin belongs to a group; every bin for itself if not given.
    """
    sums, counts = _by_document(runs, metric, snapshot)
    groups = np.eye(counts.shape[1]) if groups is None else groups
    ratio = _resampled(sums @ groups, counts @ groups)
    return np.concatenate([ratio.value[None], ratio.resamples])


def resampled_documents(
    runs: Sequence[Positions], metric: Metric = "nll", confidence: float = CONFIDENCE
) -> np.ndarray:
    """As :func:`resampled_bins`, of the mean over seeds: documents alone are resampled.

    Args:
        confidence: of the intervals that will be read from the resamples.
    """
    sums, counts = _by_document(runs, metric, snapshot=-1)
    ratio = _resampled(sums.mean(axis=0, keepdims=True), counts, confidence)
    return np.concatenate([ratio.value[None], ratio.resamples])


def bins_by_seed(runs: Sequence[Positions], metric: Metric = "nll") -> np.ndarray:
    """A metric in every bin for every seed, ``[seeds, bins]``."""
    sums, counts = _by_document(runs, metric, snapshot=-1)
    return _divide(sums.sum(axis=1), counts.sum(axis=0))


def seed_strays(by_seed: np.ndarray, stream: int = 0) -> np.ndarray:
    """How far means over seeds stray from their expectation, ``[RESAMPLES, bins]``, widened as in all resamples here.

    For intervals that hold in many bins at once. Variances between seeds are those of the bin or of it and its
    neighbours together, whichever is larger: from three seeds alone the variance of one bin can be anything, and
    intervals would have to allow for the bin of the worst luck, which makes them useless. Simulated with three seeds
    and 30 bins whose errors change from bin to bin not at all, slowly, or at random, such intervals miss somewhere in
    0 to 9 % of experiments. Bins where all seeds agree exactly get no strays, and those with values that are not finite
    NaN.

    Args:
        by_seed: values ``[seeds, bins]``, bins in the order of their positions.
        stream: of the random weights; what is paired by seed has the same.
    """
    num_seeds, num_bins = by_seed.shape
    if num_seeds == 1:
        return np.zeros((RESAMPLES, num_bins))
    finite = np.isfinite(by_seed).all(axis=0)
    known = np.where(finite, by_seed, 0.0)
    deviation = known - known.mean(axis=0)
    variance = (deviation**2).mean(axis=0)
    near = (np.abs(np.subtract.outer(np.arange(num_bins), np.arange(num_bins))) <= POOLED_BINS) & finite
    pooled = np.maximum(near @ variance / np.maximum(near.sum(axis=1), 1), variance)
    scale = np.sqrt(np.divide(pooled, variance, out=np.zeros(num_bins), where=variance > 0))
    weights = np.random.default_rng([1, stream]).normal(size=(RESAMPLES, num_seeds)) / num_seeds
    centred = weights - weights.mean(axis=1, keepdims=True)
    return _small_sample_factor(num_seeds, CONFIDENCE) * centred @ np.where(finite, deviation * scale, np.nan)


def each_once(sums: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums ``[seeds, N, bins]`` and counts ``[N, bins]``, every document scaled to a count of one over all bins.

    So a document counts once, however many windows of it were read: windows of one book are no independent books.
    """
    scale = 1 / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return sums * scale, counts * scale


def _by_document(runs: Sequence[Positions], metric: Metric, snapshot: int) -> tuple[np.ndarray, np.ndarray]:
    """Sums ``[seeds, N, bins]`` and what they are divided by, ``[N, bins]``: a document's scored tokens, or their
    bytes, as shares of all that it has.
    """
    first = runs[0]
    for run in runs[1:]:
        if not (
            np.array_equal(run.documents, first.documents) and np.array_equal(run.document_count, first.document_count)
        ):
            raise ValueError("the runs were not measured on the same held-out documents, so they cannot be paired")
    if metric == "bits_per_byte":
        if first.document_bytes is None or any(run.document_bytes is None for run in runs):
            raise ValueError("bits per byte: the tokens are not text, or were measured before their bytes were kept")
        sums, counts = [run.document_nll_sum / np.log(2) for run in runs], first.document_bytes
    else:
        sums = [run.document_nll_sum if metric == "nll" else run.document_correct for run in runs]
        counts = first.document_count
    stacked = np.stack([s[snapshot] for s in sums])
    return each_once(np.where(np.isfinite(stacked), stacked, np.nan), counts)


class _Ratio(NamedTuple):
    value: np.ndarray
    resamples: np.ndarray


def _bootstrap(sums: np.ndarray, counts: np.ndarray) -> Estimate:
    return _interval(*_resampled(sums, counts))


def _resampled(sums: np.ndarray, counts: np.ndarray, confidence: float = CONFIDENCE) -> _Ratio:
    """Ratio of sums ``[seeds, N, bins]`` to counts ``[N, bins]``, resampling documents and, if several, seeds.

    Means over seeds stray by normal weights as far as resampled ones do: resamples of three seeds have ten means, none
    beyond the extreme seed, where a confidence corrected for many contrasts would have to look.
    Gives the ratios ``[bins]`` and their resamples ``[RESAMPLES, bins]``, widened so that their percentiles at
    ``confidence`` hold for few documents and seeds too; NaN where nothing was scored.
    """
    num_seeds, num_documents, _ = sums.shape
    rng = np.random.default_rng(0)
    weights = rng.multinomial(num_documents, np.full(num_documents, 1 / num_documents), RESAMPLES)
    seeds = rng.normal(size=(RESAMPLES, num_seeds)) / num_seeds
    totals = weights @ sums
    resampled = totals.mean(axis=0)
    if num_seeds > 1:
        factor = _small_sample_factor(num_seeds, confidence)
        resampled = resampled + factor * np.einsum("rs,srb->rb", seeds - seeds.mean(axis=1, keepdims=True), totals)
    drawn = weights @ counts
    value, ratios = _divide(sums.mean(axis=0).sum(axis=0), counts.sum(axis=0)), _divide(resampled, drawn)
    if num_documents > 1:
        by_document = _divide(totals.mean(axis=0), drawn)
        ratios = ratios + (_small_sample_factor(num_documents, confidence) - 1) * (by_document - value)
    return _Ratio(value, ratios)


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sums over counts; NaN where nothing was scored, as in a resample without the few documents that reach a bin."""
    return np.divide(sums, counts, out=np.full_like(sums, np.nan, dtype=float), where=counts > 0)


def _small_sample_factor(n: int, confidence: float) -> float:
    """Widening of resampled means, which vary too little for few units: n / (n - 1) and Student's quantile."""
    tail = (1 + confidence) / 2
    small_sample = special.stdtrit(n - 1, tail) / special.ndtri(tail)
    return float(small_sample * np.sqrt(n / (n - 1)))


def _interval(value: np.ndarray, resamples: np.ndarray) -> Estimate:
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(resamples, [tail, 100 - tail], axis=0)
    return Estimate(value, low, high)


def draws(sums: np.ndarray, counts: np.ndarray, confidence: float = CONFIDENCE) -> np.ndarray:
    """A ratio as ``[1 + seeds + RESAMPLES]``: its value, its value for every seed, and its resamples.

    Arithmetic on such arrays keeps the three in step, so that any function of several ratios (a difference of arms, a
    gain, a minimum, an interpolation) is paired and has its interval from :func:`estimate`.

    Args:
        sums: ``[seeds, N]``, by document.
        counts: ``[N]``.
        confidence: of the intervals that will be read from the resamples.
    """
    ratio = _resampled(sums[:, :, None], counts[:, None], confidence)
    return np.concatenate([ratio.value, _divide(sums.sum(axis=1), counts.sum()), ratio.resamples[:, 0]])


def estimate(drawn: np.ndarray, confidence: float = CONFIDENCE) -> Estimate:
    """Value and interval of an array made of :func:`draws`."""
    tail = 100 * (1 - confidence) / 2
    low, high = np.nanpercentile(drawn[-RESAMPLES:], [tail, 100 - tail])
    return Estimate(drawn[0], low, high)


def by_seed(drawn: np.ndarray) -> np.ndarray:
    """Values for every seed ``[seeds]`` of an array made of :func:`draws`."""
    return drawn[1:-RESAMPLES]
