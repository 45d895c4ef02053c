"""Multi-query associative recall: key-value pairs, then the keys again, each to be answered with its value."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from icl_eval.tasks.base import RecallTask
from icl_eval.tasks.draws import distinct, log_uniform


@dataclass(frozen=True, kw_only=True)
class MQAR(RecallTask):
    """Multi-query associative recall (Arora et al., "Zoology", 2023), where values may be rewritten.

    N pairs ``k1 v1 … kN vN`` of distinct keys and distinct values, then two-token slots; every key stands once more,
    first in a slot of its own, and its value is to be predicted there. The answer is never shown. With
    ``num_pairs=2``, ``vocab_size=16`` (keys 1-7, values 8-15) and ``seq_len=10``, a sequence is

        tokens    3  12   5   9 |  7  2 |  5  1 |  3 14
        targets   .   .   .   . |  .  . |  9  . | 12  .
        scored    0   0   0   0 |  0  0 |  1  0 |  1  0
        position                           4       8      (tokens since the key was last written)

    The forgetting variant (``num_rewrites=1``) writes a key again among the pairs, and the last value counts:

        tokens    3  12   5   9   3  15 |  5  1 |  3 14
        targets   .   .   .   .   .   . |  9  . | 15  .

    The ideal loss is 0. A model that knows only which values occurred sits at ln(N + num_rewrites).

    Attributes:
        num_pairs: N, what the state has to hold: about ``N · log2(vocab_size / 2)`` bits.
        min_pairs: sequences hold from this many to ``num_pairs`` pairs, log-uniformly; ``None`` for N in all.
        num_rewrites: how often a key, drawn anew each time, gets another value; old values are to be forgotten.
        vocab_size: keys come from the lower half (without token 0), values from the upper.
        query_decay: slot g is drawn with weight ``(g + 1) ** (query_decay - 1)``: 1 spreads the queries evenly,
            Zoology's 0.01 puts most of them early.
        random_filler: fill the rest of the query area with random tokens, else with token 0. Where the number of pairs
            varies it has to be 0: nothing else tells filler from pairs.
        axis: report by the distance from a key to its query, or by the number of pairs in the sequence.
    """

    name: ClassVar[str] = "mqar"
    version: ClassVar[int] = 2

    vocab_size: int = 256
    num_pairs: int = 32
    min_pairs: int | None = None
    num_rewrites: int = 0
    query_decay: float = 1.0
    random_filler: bool = True
    axis: Literal["distance", "pairs"] = "distance"

    def __post_init__(self) -> None:
        self.require(self.vocab_size >= 4 and self.vocab_size % 2 == 0, "vocab_size", "an even number of at least 4")
        self.require(
            1 <= self.num_pairs < self.vocab_size // 2, "num_pairs", f"in [1, vocab_size / 2 = {self.vocab_size // 2})"
        )
        self.require(
            self.min_pairs is None or 1 <= self.min_pairs <= self.num_pairs,
            "min_pairs",
            f"None or in [1, num_pairs = {self.num_pairs}]",
        )
        self.require(
            not (self.random_filler and self.min_pairs), "random_filler", f"False with min_pairs = {self.min_pairs}"
        )
        spare = self.vocab_size // 2 - self.num_pairs
        self.require(
            0 <= self.num_rewrites <= spare,
            "num_rewrites",
            f"in [0, vocab_size / 2 - num_pairs = {spare}]: values are distinct",
        )
        self.require(self.query_decay > 0, "query_decay", "positive")
        self.require(self.axis in ("distance", "pairs"), "axis", "'distance' or 'pairs'")
        need = 4 * self.num_pairs + 2 * self.num_rewrites
        self.require(
            self.seq_len >= need and self.seq_len % 2 == 0,
            "seq_len",
            f"even and at least {need}: num_pairs = {self.num_pairs} takes two tokens a pair and two a query, "
            f"num_rewrites = {self.num_rewrites} two each",
        )

    @property
    def num_tokens(self) -> int:
        return self.vocab_size

    @property
    def position_label(self) -> str:
        return "distance from key to query (tokens)" if self.axis == "distance" else "key-value pairs in the sequence"

    @property
    def num_positions(self) -> int:
        return self.seq_len + 1 if self.axis == "distance" else self.num_pairs + 1

    @property
    def state_bits(self) -> float:
        return self.num_pairs * float(np.log2(self.vocab_size / 2))

    def chance(self) -> float:
        return float(np.log(self.vocab_size / 2))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        T, N, half = self.seq_len, self.num_pairs, self.vocab_size // 2
        num_writes = N + self.num_rewrites
        row = np.arange(rows)[:, None]
        keys = 1 + distinct(rng, rows, half - 1, N)
        values = half + distinct(rng, rows, half, num_writes)
        num_pairs = log_uniform(rng, self.min_pairs or N, N, rows)[:, None]
        written, is_write = self._writes(rng, num_pairs)
        last = np.zeros((rows, N), np.int64)
        np.maximum.at(last, (row, written), is_write * np.arange(num_writes))

        tokens = rng.integers(0, self.vocab_size, (rows, T)) if self.random_filler else np.zeros((rows, T), np.int64)
        b, j = np.nonzero(is_write)
        tokens[b, 2 * j], tokens[b, 2 * j + 1] = keys[b, written[b, j]], values[b, j]
        slot = num_pairs + self.num_rewrites + self._query_slots(rng, num_pairs)
        b, i = np.nonzero(np.arange(N) < num_pairs)
        at, wrote = 2 * slot[b, i], last[b, i]
        tokens[b, at] = keys[b, i]
        targets, position = np.zeros((rows, T), np.int64), np.zeros((rows, T), np.int64)
        scored = np.zeros((rows, T), bool)
        targets[b, at] = values[b, wrote]
        scored[b, at] = True
        position[b, at] = at - 2 * wrote if self.axis == "distance" else num_pairs[b, 0]
        return {"tokens": tokens, "targets": targets, "scored": scored, "position": position}

    def _writes(self, rng: np.random.Generator, num_pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which key each write is of, in the order of writing, and whether the sequence has the write at all."""
        rows, N, U = len(num_pairs), self.num_pairs, self.num_rewrites
        key = np.concatenate([np.tile(np.arange(N), (rows, 1)), rng.integers(0, num_pairs, (rows, U))], axis=1)
        absent = key >= num_pairs
        rank = rng.permuted(np.tile(np.arange(N + U), (rows, 1)), axis=1) + (N + U) * absent
        return np.take_along_axis(key, np.argsort(rank, axis=1), axis=1), np.arange(N + U) < num_pairs + U

    def _query_slots(self, rng: np.random.Generator, num_pairs: np.ndarray) -> np.ndarray:
        """A slot for every key, counted from the end of the pairs, distinct within a row."""
        most = self.seq_len // 2 - self.num_rewrites - (self.min_pairs or self.num_pairs)
        slot = np.arange(most)
        weight = (self.query_decay - 1) * np.log(slot + 1) + rng.gumbel(size=(len(num_pairs), most))
        weight[slot >= self.seq_len // 2 - self.num_rewrites - num_pairs] = -np.inf
        return np.argsort(-weight, axis=1)[:, : self.num_pairs]
