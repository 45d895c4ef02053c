"""Losses by position: the sums that a measurement leaves behind, and the log-spaced bins they are read in."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

BINS_PER_OCTAVE = 2


def log_bin_edges(num_positions: int) -> np.ndarray:
    """Edges of bins ``[edge, next)`` that cover ``[0, num_positions)``: 0, 1, 2, 3, 4, 5-6, 7-8, 9-11, 12-16, 17-23, …

    The bins have equal width on a log axis as soon as integers allow, as in the paper's section 4, and end at powers
    of two.
    """
    octaves = np.ceil(np.log2(max(num_positions, 2)))
    ends = np.round(2 ** (np.arange(octaves * BINS_PER_OCTAVE + 1) / BINS_PER_OCTAVE)).astype(np.int64)
    edges = np.unique(np.concatenate([[0, 1], ends + 1]))
    return np.append(edges[edges < num_positions], num_positions)


@dataclass(frozen=True)
class Measurement:
    """Sums over the scored tokens of held-out sequences, by position and by document × bin.

    Attributes:
        nll_sum, nll_square_sum: float64 ``[P]``, nats (and squared nats), or squared errors where the task predicts
            numbers.
        correct: float64 ``[P]``, tokens whose likeliest prediction was right; NaN where the task predicts numbers.
        count: float64 ``[P]``, scored tokens.
        documents: int64 ``[N]``, the documents' numbers.
        bin_edges: int64 ``[bins + 1]``, positions.
        document_nll_sum, document_correct, document_count: float64 ``[N, bins]``.
    """

    nll_sum: np.ndarray
    nll_square_sum: np.ndarray
    correct: np.ndarray
    count: np.ndarray
    documents: np.ndarray
    bin_edges: np.ndarray
    document_nll_sum: np.ndarray
    document_correct: np.ndarray
    document_count: np.ndarray


@dataclass(frozen=True)
class Positions:
    """Measurements at K points of a run.

    Attributes:
        step, tokens, flops, seconds: ``[K]``, what training had spent: steps, tokens, FLOPs, seconds without measuring.
        nll_sum, nll_square_sum, correct: ``[K, P]``, as in :class:`Measurement`.
        document_nll_sum, document_correct: ``[K, N, bins]``.
        count, documents, bin_edges, document_count: as in :class:`Measurement`, the same for every point.
    """

    step: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    seconds: np.ndarray
    nll_sum: np.ndarray
    nll_square_sum: np.ndarray
    correct: np.ndarray
    document_nll_sum: np.ndarray
    document_correct: np.ndarray
    count: np.ndarray
    documents: np.ndarray
    bin_edges: np.ndarray
    document_count: np.ndarray

    def before(self, step: int) -> Self:
        """The points up to ``step``, included."""
        keep = self.step <= step
        return type(self)(**{f.name: _stacked(self, f.name, keep) for f in fields(self)})

    def to_bytes(self) -> bytes:
        """All arrays as the contents of a compressed NPZ file."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{f.name: getattr(self, f.name) for f in fields(self)})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**{f.name: arrays[f.name] for f in fields(cls)})


_ONCE = ("count", "documents", "bin_edges", "document_count")


def _stacked(positions: Positions, name: str, keep: np.ndarray) -> np.ndarray:
    values = getattr(positions, name)
    return values if name in _ONCE else values[keep]


def append(positions: Positions | None, measurement: Measurement, spent: Mapping[str, float]) -> Positions:
    """``positions`` (or nothing yet) with one more point, measured after ``spent``: step, tokens, flops and seconds."""
    arrays = {}
    for name in (f.name for f in fields(Positions)):
        if name in _ONCE:
            arrays[name] = getattr(measurement, name)
            continue
        new = np.array([spent[name] if name in spent else getattr(measurement, name)])
        arrays[name] = new if positions is None else np.concatenate([getattr(positions, name), new])
    return Positions(**arrays)
