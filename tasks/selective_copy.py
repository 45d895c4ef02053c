"""Selective copying: a few symbols scattered among blanks, to be said again in order."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from icl_eval.tasks.base import RecallTask
from icl_eval.tasks.draws import ascending


@dataclass(frozen=True, kw_only=True)
class SelectiveCopy(RecallTask):
    """Selective copying (Gu and Dao, "Mamba", 2023; Poli et al., "MAD", 2024).

    N uniform symbols (numbered from 2) at random places among blanks 0, then the token 1, from which on the symbols
    are to be predicted in order. The answers are not shown. With ``num_symbols=2``, ``vocab_size=10`` and
    ``seq_len=8``, a sequence is

        tokens    0  7  0  0  4  0  1  0
        targets   .  .  .  .  .  .  7  4
        scored    0  0  0  0  0  0  1  1
        position                    5  3   (tokens since the symbol was shown)

    The ideal loss is 0.

    Attributes:
        num_symbols: N, what the state has to hold.
        vocab_size: blank and copy token included.
    """

    name: ClassVar[str] = "selective_copy"
    version: ClassVar[int] = 1

    vocab_size: int = 16
    num_symbols: int = 16

    def __post_init__(self) -> None:
        self.require(self.vocab_size >= 4, "vocab_size", "at least 4")
        self.require(self.num_symbols >= 1, "num_symbols", "at least 1")
        need = 2 * self.num_symbols
        self.require(self.seq_len >= need, "seq_len", f"at least {need}: each of num_symbols is shown and said")

    @property
    def num_tokens(self) -> int:
        return self.vocab_size

    @property
    def position_label(self) -> str:
        return "distance from symbol to copy (tokens)"

    @property
    def state_bits(self) -> float:
        return self.num_symbols * float(np.log2(self.vocab_size - 2))

    def chance(self) -> float:
        return float(np.log(self.vocab_size - 2))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        N, begin = self.num_symbols, self.seq_len - self.num_symbols
        row = np.arange(rows)[:, None]
        symbols = rng.integers(2, self.vocab_size, (rows, N))
        where = ascending(rng, rows, begin, N)
        tokens, targets, position = np.zeros((3, rows, self.seq_len), np.int64)
        tokens[row, where], tokens[:, begin] = symbols, 1
        targets[:, begin:] = symbols
        position[:, begin:] = begin + np.arange(N) - where
        scored = np.tile(np.arange(self.seq_len) >= begin, (rows, 1))
        return {"tokens": tokens, "targets": targets, "scored": scored, "position": position}
