"""Copying: a random string of random length, and the string again."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from icl_eval.tasks.base import RecallTask
from icl_eval.tasks.draws import log_uniform


@dataclass(frozen=True, kw_only=True)
class StringCopy(RecallTask):
    """Copying (Jelassi et al., "Repeat after me", 2024), over many lengths at once.

    A string of L uniform symbols (numbered from 2), the separator 1, and the string again, all of which is to be
    predicted; 0 fills up. L is log-uniform from ``min_length`` to ``seq_len // 2``. With ``vocab_size=10``,
    ``seq_len=8`` and L = 3, a sequence is

        tokens    7  2  5  1  7  2  5  0
        targets   .  .  .  7  2  5  .  .
        scored    0  0  0  1  1  1  0  0
        position           4  4  4        (tokens from a symbol to its copy: L + 1)

    The ideal loss is 0.

    Attributes:
        seq_len: tokens a sequence; the state has to hold ``seq_len // 2`` symbols.
        vocab_size: separator and filler included.
        min_length: shortest string; ``seq_len // 2`` gives one length only.
    """

    name: ClassVar[str] = "copy"
    version: ClassVar[int] = 1

    vocab_size: int = 64
    min_length: int = 8

    def __post_init__(self) -> None:
        self.require(self.vocab_size >= 4, "vocab_size", "at least 4")
        self.require(self.seq_len >= 2, "seq_len", "at least 2")
        self.require(1 <= self.min_length <= self.max_length, "min_length", f"in [1, seq_len // 2 = {self.max_length}]")

    @property
    def max_length(self) -> int:
        """Symbols of the longest string."""
        return self.seq_len // 2

    @property
    def num_tokens(self) -> int:
        return self.vocab_size

    @property
    def position_label(self) -> str:
        return "distance from symbol to copy (tokens)"

    @property
    def state_bits(self) -> float:
        return self.max_length * float(np.log2(self.vocab_size - 2))

    def chance(self) -> float:
        return float(np.log(self.vocab_size - 2))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        length = log_uniform(rng, self.min_length, self.max_length, rows)[:, None]
        symbols = rng.integers(2, self.vocab_size, (rows, self.max_length))
        place = np.arange(self.seq_len + 1)
        source = np.where(place < length, place, place - length - 1)
        whole = np.take_along_axis(symbols, source.clip(0, self.max_length - 1), axis=1)
        whole[place == length] = 1
        whole[place > 2 * length] = 0
        scored = (place[:-1] >= length) & (place[:-1] < 2 * length)
        return {
            "tokens": whole[:, :-1].copy(),
            "targets": whole[:, 1:].copy(),
            "scored": scored,
            "position": scored * (length + 1),
        }
