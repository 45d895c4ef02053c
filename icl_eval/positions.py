"""Losses by position: the sums that a measurement leaves behind, and the log-spaced bins they are read in."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
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
        document_bytes: float64 ``[N, bins]``, bytes of text of the scored tokens; ``None`` where tokens are not text.
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
    document_bytes: np.ndarray | None = None


@dataclass(frozen=True)
class Positions:
    """Measurements at K points of a run.

    Attributes:
        step, tokens, flops, seconds: ``[K]``, what the model measured had been trained for, seconds without measuring;
            where the schedule branches, what the branch's own path took.
        nll_sum, nll_square_sum, correct: ``[K, P]``, as in :class:`Measurement`.
        document_nll_sum, document_correct: ``[K, N, bins]``.
        count, documents, bin_edges, document_count, document_bytes: as in :class:`Measurement`, the same for every
            point. Files written before bytes were kept have none.
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
    document_bytes: np.ndarray | None = None

    def first(self, points: int) -> Self:
        """The first of the points."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return type(self)(**{name: x if name in _ONCE else x[:points] for name, x in arrays.items()})

    def of(self, documents: np.ndarray) -> Self:
        """Those of the given documents that were measured, such as one source's; sums by position are left whole."""
        keep = np.isin(self.documents, documents)
        return replace(
            self,
            documents=self.documents[keep],
            document_nll_sum=self.document_nll_sum[:, keep],
            document_correct=self.document_correct[:, keep],
            document_count=self.document_count[keep],
            document_bytes=None if self.document_bytes is None else self.document_bytes[keep],
        )

    def to_bytes(self) -> bytes:
        """All arrays as the contents of a compressed NPZ file."""
        buffer = io.BytesIO()
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        np.savez_compressed(buffer, **{name: array for name, array in arrays.items() if array is not None})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            optional = {"document_bytes"} - set(arrays)
            return cls(**{f.name: arrays[f.name] for f in fields(cls) if f.name not in optional})


_ONCE = ("count", "documents", "bin_edges", "document_count", "document_bytes")


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
