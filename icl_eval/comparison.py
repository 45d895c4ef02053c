"""Paired differences between arms by position, corrected for looking at many positions and pairs at once."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from icl_eval.context_use import simultaneous
from icl_eval.positions import Positions
from icl_eval.statistics import Curve, Estimate, Metric, bins_by_seed, resampled_documents, seed_strays, well_reached


class Difference(NamedTuple):
    """What one arm loses more than another, by position.

    Attributes:
        first, second: names of the arms; the difference is first less second.
        curve: nats a token or bits a byte; its intervals hold with 95 % for all positions of all pairs at once.
    """

    first: str
    second: str
    curve: Curve

    @property
    def verdicts(self) -> np.ndarray:
        """For every bin, 1 where the first arm is significantly worse, -1 where it is better, and 0."""
        return (self.curve.estimate.low > 0).astype(int) - (self.curve.estimate.high < 0)


def compare(
    arms: Mapping[str, Sequence[Positions]], metric: Metric = "nll", pairs: Sequence[tuple[str, str]] | None = None
) -> list[Difference]:
    """Pairs of arms, all if none are given, by position.

    Documents are resampled for all arms alike, and seeds alike where arms have as many, so differences are paired. The
    max-\\|t\\| bootstrap over all bins of all pairs keeps the chance that any of them is called different without
    being so at 5 %; how much seeds differ is pooled over neighbouring bins. Bins that less than half of the documents
    reach are left out: few would seem to agree.

    Raises:
        ValueError: the arms were not measured on the same documents, or in other bins.
    """
    names = list(arms)
    first = arms[names[0]][0]
    for name in names[1:]:
        other = arms[name][0]
        if not np.array_equal(other.documents, first.documents) or not np.array_equal(other.bin_edges, first.bin_edges):
            raise ValueError(
                f"{names[0]} and {name} were not measured on the same documents, so they cannot be paired; "
                "measure them with one command"
            )
    pairs = pairs or list(combinations(names, 2))
    reached = well_reached(*(runs[0].document_count for runs in arms.values()))

    def drawn_at(confidence: float) -> np.ndarray:
        drawn = {n: resampled_documents(runs, metric, confidence)[:, reached] for n, runs in arms.items()}
        return np.concatenate([drawn[a] - drawn[b] for a, b in pairs], axis=1)

    by_seed = {name: bins_by_seed(runs, metric)[:, reached] for name, runs in arms.items()}
    strays = np.concatenate([_strays(by_seed[a], by_seed[b]) for a, b in pairs], axis=1)
    estimate = simultaneous(drawn_at, strays)
    edges = first.bin_edges
    starts, ends = edges[:-1][reached], edges[1:][reached] - 1
    parts = zip(*(np.split(bound, len(pairs)) for bound in estimate), strict=True)
    return [Difference(a, b, Curve(starts, ends, Estimate(*p))) for (a, b), p in zip(pairs, parts, strict=True)]


def _strays(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """What seeds add to the resamples of a difference, paired where both arms have as many."""
    if len(first) == len(second):
        return seed_strays(first - second)
    return seed_strays(first, stream=1) - seed_strays(second, stream=2)
