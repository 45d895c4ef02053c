"""Multi-query associative recall: key-value pairs, then the keys again, each to be answered with its value."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from icl_eval.tasks.base import Batch, Split, Task, generator, to_tensor


@dataclass(frozen=True, kw_only=True)
class MQAR(Task):
    """Multi-query associative recall (Arora et al., "Zoology", 2023).

    N pairs ``k1 v1 … kN vN`` of distinct keys and distinct values, then two-token slots; every key stands once more,
    first in a slot of its own, and its value is to be predicted there. The answer is never shown. With
    ``num_pairs=2``, ``vocab_size=16`` (keys 1-7, values 8-15) and ``seq_len=10``, a sequence is

        tokens    3  12   5   9 |  7  2 |  5  1 |  3 14
        targets   .   .   .   . |  .  . |  9  . | 12  .
        scored    0   0   0   0 |  0  0 |  1  0 |  1  0
        position                           4       8      (tokens since the key was shown)

    The ideal loss is 0. A model that knows only which values occurred sits at ln N.

    Attributes:
        num_pairs: N, what the state has to hold: about ``N · log2(vocab_size / 2)`` bits.
        vocab_size: keys come from the lower half (without token 0), values from the upper.
        query_decay: slot g is drawn with weight ``(g + 1) ** (query_decay - 1)``: 1 spreads the queries evenly,
            Zoology's 0.01 puts most of them early.
        random_filler: fill the rest of the query area with random tokens, else with token 0.
    """

    name: ClassVar[str] = "mqar"
    version: ClassVar[int] = 1
    position_label: ClassVar[str] = "distance from key to query (tokens)"

    vocab_size: int = 256
    num_pairs: int = 32
    query_decay: float = 1.0
    random_filler: bool = True

    def __post_init__(self) -> None:
        self.require(self.vocab_size >= 4 and self.vocab_size % 2 == 0, "vocab_size", "an even number of at least 4")
        self.require(
            1 <= self.num_pairs < self.vocab_size // 2, "num_pairs", f"in [1, vocab_size / 2 = {self.vocab_size // 2})"
        )
        self.require(self.query_decay > 0, "query_decay", "positive")
        need = 4 * self.num_pairs
        self.require(
            self.seq_len >= need and self.seq_len % 2 == 0,
            "seq_len",
            f"even and at least {need}: num_pairs = {self.num_pairs} takes two tokens a pair and two a query",
        )

    @property
    def num_tokens(self) -> int:
        return self.vocab_size

    @property
    def state_bits(self) -> float:
        """Bits that a state must hold to answer every query."""
        return self.num_pairs * float(np.log2(self.vocab_size / 2))

    def build(self, seed: int) -> "MQARSource":
        return MQARSource(self, seed)

    def optimum(self, position: np.ndarray) -> np.ndarray:
        return np.zeros(len(position))

    def chance(self) -> float:
        return float(np.log(self.vocab_size / 2))


class MQARSource:
    """Batches of :class:`MQAR`; a sequence is its own document."""

    def __init__(self, task: MQAR, seed: int):
        self.task, self.seed = task, seed

    def batch(self, split: Split, index: int, batch_size: int) -> Batch:
        rng, task = generator(self.seed, split, index), self.task
        B, T, N, half = batch_size, task.seq_len, task.num_pairs, task.vocab_size // 2
        keys = 1 + _distinct(rng, B, half - 1, N)
        values = half + _distinct(rng, B, half, N)
        num_slots = (T - 2 * N) // 2
        log_weight = (task.query_decay - 1) * np.log(np.arange(1, num_slots + 1))
        slots = np.argsort(-(log_weight + rng.gumbel(size=(B, num_slots))), axis=1)[:, :N]
        query_at = 2 * N + 2 * slots

        tokens = rng.integers(0, task.vocab_size, (B, T)) if task.random_filler else np.zeros((B, T), np.int64)
        tokens[:, 0 : 2 * N : 2], tokens[:, 1 : 2 * N : 2] = keys, values
        targets, position = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
        scored = np.zeros((B, T), bool)
        rows = np.arange(B)[:, None]
        tokens[rows, query_at] = keys
        targets[rows, query_at] = values
        scored[rows, query_at] = True
        position[rows, query_at] = query_at - 2 * np.arange(N)
        document = index * batch_size + np.arange(B)
        return Batch(*map(to_tensor, (tokens, targets, scored, position, document)))

    def num_sequences(self, split: Split) -> None:
        return None

    def manifest(self) -> dict[str, Any]:
        return {}


def _distinct(rng: np.random.Generator, rows: int, size: int, count: int) -> np.ndarray:
    """``[rows, count]`` numbers below ``size``, distinct within a row, in random order."""
    return np.argsort(rng.random((rows, size), dtype=np.float32), axis=1)[:, :count]
