"""A phone book: many names with numbers, some of them asked for at the end."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from icl_eval.tasks.draws import distinct
from icl_eval.tasks.lines import LineTask, Vocabulary, digits, sequences
from icl_eval.tasks.words import FIRST_NAMES, LAST_NAMES

VOCABULARY = Vocabulary(
    blank=("\n",),
    digit=tuple("0123456789"),
    colon=(": ",),
    first=tuple(f"{name} " for name in FIRST_NAMES),
    last=tuple(LAST_NAMES),
)
NUM_DIGITS = 10
ENTRY = 4 + NUM_DIGITS
"""Tokens of an entry: ``Alice |King|: |6|0|3|1|1|7|9|0|4|2|\\n``"""


@dataclass(frozen=True, kw_only=True)
class Phonebook(LineTask):
    """Phone-book look-up (Jelassi et al., "Repeat after me", 2024), names without repetition.

    A book of distinct names and distinct numbers of 10 digits, the first of them 6 to 9; then some entries stand once
    more, and their numbers are to be predicted, digit by digit. The book is as long as ``seq_len`` allows. Tokens are
    pieces of text (here between bars), blanks at the start fill up. With ``num_queries=1`` and ``seq_len=41``, a
    sequence reads

        |Alice |King|: |6|0|3|1|1|7|9|0|4|2|\\n|
        |Karen |Ford|: |8|8|1|9|2|0|0|5|3|7|\\n|
        |Alice |King|: |6|0|3|1|1|7|9|0|4|2|\\n|

        tokens      :   6   0   3   1   1   7   9   0   4     (of the last line)
        targets     6   0   3   1   1   7   9   0   4   2
        scored      1   1   1   1   1   1   1   1   1   1
        position   28  28  28  28  28  28  28  28  28  28     (tokens since the digit was shown)

    The ideal loss is 0; knowing how numbers look leaves ln(4·10⁹) / 10 = 2.21 nats a digit.

    Attributes:
        seq_len: tokens a sequence; sets how many entries the state has to hold: 32 bits each.
        num_queries: entries asked for, one after the other.
    """

    name: ClassVar[str] = "phonebook"
    version: ClassVar[int] = 1

    num_queries: int = 3

    def __post_init__(self) -> None:
        self.require(self.num_queries >= 1, "num_queries", "at least 1")
        self.require_room()
        most = len(FIRST_NAMES) * len(LAST_NAMES)
        self.require(self.num_entries <= most, "seq_len", f"so short that {most} distinct names suffice")

    @property
    def num_entries(self) -> int:
        """Entries of the book."""
        return (self.seq_len + 1) // ENTRY - self.num_queries

    @property
    def vocabulary(self) -> Vocabulary:
        return VOCABULARY

    @property
    def min_seq_len(self) -> int:
        return 2 * self.num_queries * ENTRY - 1

    @property
    def position_label(self) -> str:
        return "distance from entry to question (tokens)"

    @property
    def state_bits(self) -> float:
        return self.num_entries * float(np.log2(4e9))

    def chance(self) -> float:
        return float(np.log(4e9)) / NUM_DIGITS

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        N, Q = self.num_entries, self.num_queries
        names = np.divmod(distinct(rng, rows, len(FIRST_NAMES) * len(LAST_NAMES), N), len(LAST_NAMES))
        lines = np.empty((rows, N + Q, ENTRY), np.int64)
        lines[:, :N, 0], lines[:, :N, 1] = VOCABULARY["first"] + names[0], VOCABULARY["last"] + names[1]
        lines[:, :N, 2], lines[:, :N, -1] = VOCABULARY["colon"], VOCABULARY["blank"]
        lines[:, :N, 3:-1] = VOCABULARY["digit"] + digits(rng, rows, N, NUM_DIGITS, (6, 10))
        where = distinct(rng, rows, N, Q)
        lines[:, N:] = lines[np.arange(rows)[:, None], where]

        asked, position = np.zeros(lines.shape, bool), np.zeros(lines.shape, np.int64)
        asked[:, N:, 3:-1] = True
        position[:, N:] = (ENTRY * (N + np.arange(Q) - where))[:, :, None]
        return sequences(lines, asked, position, seq_len=self.seq_len, blank=VOCABULARY["blank"])
