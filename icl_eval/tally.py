"""Sums of losses as they come in: the way from scored tokens to a :class:`Measurement`."""

from collections.abc import Callable

import numpy as np

from icl_eval.positions import Measurement, log_bin_edges


class Tally:
    """Adds up losses by position and by document × bin.

    Args:
        documents: distinct int64 ``[N]``, sorted: all that will be added.
        num_positions: positions lie in ``[0, num_positions)``.
    """

    def __init__(self, documents: np.ndarray, num_positions: int):
        self._documents, self._edges = documents, log_bin_edges(num_positions)
        self._by_position = np.zeros((4, num_positions))
        self._by_document = np.zeros((4, len(documents) * (len(self._edges) - 1)))

    def add(
        self, document: np.ndarray, position: np.ndarray, nll: np.ndarray, correct: np.ndarray, size: np.ndarray
    ) -> None:
        """Scored tokens, all ``[n]``: where they stand, their losses, whether they were right, and their bytes."""
        row = np.searchsorted(self._documents, document)
        cell = row * (len(self._edges) - 1) + np.searchsorted(self._edges, position, side="right") - 1
        for total, weights in zip(self._by_position, (nll, nll**2, correct, np.ones_like(nll)), strict=True):
            total += np.bincount(position, weights, len(total))
        for total, weights in zip(self._by_document, (nll, correct, np.ones_like(nll), size), strict=True):
            total += np.bincount(cell, weights, len(total))

    def measurement(
        self, *, text: bool, reduce: Callable[[np.ndarray], np.ndarray] = lambda total: total
    ) -> Measurement:
        """The sums.

        Args:
            text: whether the sizes given are bytes of text, and to be kept.
            reduce: adds an array up over processes.
        """
        nll_sum, nll_square_sum, correct, count = reduce(self._by_position)
        by_document = reduce(self._by_document).reshape(4, len(self._documents), -1)
        return Measurement(
            nll_sum=nll_sum,
            nll_square_sum=nll_square_sum,
            correct=correct,
            count=count,
            documents=self._documents,
            bin_edges=self._edges,
            document_nll_sum=by_document[0],
            document_correct=by_document[1],
            document_count=by_document[2],
            document_bytes=by_document[3] if text else None,
        )
