"""Needles in a haystack: magic numbers among sentences that do not repeat, some of them asked for at the end."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from icl_eval.tasks.draws import distinct
from icl_eval.tasks.lines import (
    HAYSTACK,
    NO_TOKEN,
    SENTENCE,
    LineTask,
    Vocabulary,
    digits,
    line_starts,
    sentences,
    sequences,
)
from icl_eval.tasks.words import ADJECTIVES, OBJECTS

VOCABULARY = Vocabulary(
    blank=("\n",), digit=tuple("0123456789"), needle=("One of the special magic numbers for ", " is: "), **HAYSTACK
)
NUM_DIGITS = 7
NEEDLE = 5 + NUM_DIGITS
"""Tokens of a needle."""


@dataclass(frozen=True, kw_only=True)
class Needle(LineTask):
    """Needles in a haystack (multi-key retrieval, after Hsieh et al., "RULER", 2024).

    Needles with distinct keys and distinct numbers of 7 digits stand between sentences that are all different; the
    sequence ends with the first words of some needles, whose numbers are to be predicted, digit by digit. All other
    needles are distractors. Tokens are pieces of text (here between bars), blanks at the start fill up. With
    ``num_needles=2``, ``num_queries=1`` and ``seq_len=43``, a sequence reads

        |One of the special magic numbers for |red |lamp| is: |1|0|4|7|5|9|2|.\\n|
        |The |old |fisher |found |the |pale |kite|.\\n|
        |One of the special magic numbers for |old |coin| is: |6|6|0|1|8|3|0|.\\n|
        |One of the special magic numbers for |red |lamp| is: |1|0|4|7|5|9|2|.\\n|

        tokens     is:   1   0   4   7   5   9     (of the last line)
        targets      1   0   4   7   5   9   2
        scored       1   1   1   1   1   1   1
        position    32  32  32  32  32  32  32     (tokens since the digit was shown)

    The ideal loss is 0; knowing how numbers look leaves ln(9·10⁶) / 7 = 2.29 nats a digit.

    Attributes:
        num_needles: N, what the state has to hold: 23 bits each; all but the queried ones are distractors.
        num_queries: needles asked for, one after the other.
    """

    name: ClassVar[str] = "needle"
    version: ClassVar[int] = 1

    seq_len: int = 512
    num_needles: int = 4
    num_queries: int = 4

    def __post_init__(self) -> None:
        most = len(ADJECTIVES) * len(OBJECTS)
        self.require(1 <= self.num_needles <= most, "num_needles", f"in [1, {most}]: keys are distinct")
        self.require(
            1 <= self.num_queries <= self.num_needles, "num_queries", f"in [1, num_needles = {self.num_needles}]"
        )
        self.require_room()

    @property
    def vocabulary(self) -> Vocabulary:
        return VOCABULARY

    @property
    def min_seq_len(self) -> int:
        return NEEDLE * (self.num_needles + self.num_queries) - 1

    @property
    def position_label(self) -> str:
        return "distance from needle to question (tokens)"

    @property
    def state_bits(self) -> float:
        return self.num_needles * float(np.log2(9e6))

    def chance(self) -> float:
        return float(np.log(9e6)) / NUM_DIGITS

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        N, Q = self.num_needles, self.num_queries
        num_sentences = (self.seq_len - self.min_seq_len) // SENTENCE
        num_lines = N + num_sentences
        adjective, noun = np.divmod(distinct(rng, rows, len(ADJECTIVES) * len(OBJECTS), N), len(OBJECTS))
        needles = np.empty((rows, N, NEEDLE), np.int64)
        needles[:, :, [0, 3, -1]] = VOCABULARY["needle"], VOCABULARY["needle"] + 1, VOCABULARY["the"] + 2
        needles[:, :, 1], needles[:, :, 2] = VOCABULARY["adjective"] + adjective, VOCABULARY["object"] + noun
        needles[:, :, 4:-1] = VOCABULARY["digit"] + digits(rng, rows, N, NUM_DIGITS, (1, 10))

        row, where = np.arange(rows)[:, None], distinct(rng, rows, num_lines, N)
        lines = np.full((rows, num_lines + Q, NEEDLE), NO_TOKEN)
        is_sentence = np.ones((rows, num_lines + Q), bool)
        is_sentence[row, where] = is_sentence[:, num_lines:] = False
        lines[is_sentence, :SENTENCE] = sentences(rng, rows, num_sentences, VOCABULARY).reshape(-1, SENTENCE)
        lines[row, where], lines[:, num_lines:] = needles, needles[:, :Q]

        asked, position = np.zeros(lines.shape, bool), np.zeros(lines.shape, np.int64)
        asked[:, num_lines:, 4:-1] = True
        start = line_starts(lines)
        position[:, num_lines:] = (start[:, num_lines:] - start[row, where[:, :Q]])[:, :, None]
        return sequences(lines, asked, position, seq_len=self.seq_len, blank=VOCABULARY["blank"])
