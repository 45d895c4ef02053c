"""Variable tracking: chains of assignments scattered over a text; what does a variable hold?"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from icl_eval.tasks.draws import ascending, distinct, occurrences
from icl_eval.tasks.lines import (
    HAYSTACK,
    NO_TOKEN,
    SENTENCE,
    LineTask,
    TextExample,
    Vocabulary,
    sentences,
    sequences,
    text_example,
)

VARIABLES = tuple(f"{letter}{digit}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" for digit in range(10))
VALUES = tuple(str(number) for number in range(10, 100))
VOCABULARY = Vocabulary(blank=("\n",), code=("VAR ", " = ", " is: "), variable=VARIABLES, value=VALUES, **HAYSTACK)
VALUE_LINE, COPY_LINE = 5, 6
"""Tokens of ``VAR |K4| = |47|\\n`` (or ``VAR |K4| is: |47|\\n``) and of ``VAR |B0| = |VAR |K4|\\n``."""


@dataclass(frozen=True, kw_only=True)
class VariableTracking(LineTask):
    """Variable tracking (after Hsieh et al., "RULER", 2024), with several chains.

    In each of C chains a variable gets a number of its own, a second one the value of the first, and so on; the
    chains' lines stand in this order, shuffled together, between sentences that are all different. The sequence ends
    with questions for the values of some variables, of any chain and any place in it. Tokens are pieces of text (here
    between bars), blanks at the start fill up. With ``num_chains=2``, ``num_hops=1``, ``num_queries=1`` and
    ``seq_len=34``, a sequence reads

        |VAR |K4| = |47|\\n|
        |VAR |Z9| = |12|\\n|
        |The |old |fisher |found |the |pale |kite|.\\n|
        |VAR |B0| = |VAR |K4|\\n|
        |VAR |A7| = |VAR |Z9|\\n|
        |VAR |B0| is: |47|\\n|

        tokens     VAR   B0   is:     (of the last line)
        targets     B0  is:    47
        scored       0    0     1
        position                2     (assignments that lead to the value)

    The ideal loss is 0. A model that knows only which numbers were assigned sits at ln C.

    Attributes:
        num_chains: C, at least 4 for one to be told from the others by more than elimination.
        num_hops: copies in every chain; the state has to hold a value for ``C · (num_hops + 1)`` variables.
        num_queries: variables asked for, one after the other.
    """

    name: ClassVar[str] = "variable_tracking"
    version: ClassVar[int] = 1

    num_chains: int = 4
    num_hops: int = 4
    num_queries: int = 4

    def __post_init__(self) -> None:
        self.require(2 <= self.num_chains <= len(VALUES), "num_chains", f"in [2, {len(VALUES)}]: values are distinct")
        most = len(VARIABLES) // self.num_chains - 1
        self.require(
            0 <= self.num_hops <= most, "num_hops", f"in [0, {most}]: there are {len(VARIABLES)} variables to share out"
        )
        self.require(
            1 <= self.num_queries <= self.num_variables, "num_queries", f"in [1, variables = {self.num_variables}]"
        )
        self.require_room()

    @property
    def num_variables(self) -> int:
        """Variables of all chains."""
        return self.num_chains * (self.num_hops + 1)

    @property
    def vocabulary(self) -> Vocabulary:
        return VOCABULARY

    @property
    def min_seq_len(self) -> int:
        return self.num_chains * (VALUE_LINE + COPY_LINE * self.num_hops) + VALUE_LINE * self.num_queries - 1

    @property
    def position_label(self) -> str:
        return "assignments that lead to the value"

    @property
    def num_positions(self) -> int:
        return self.num_hops + 2

    @property
    def state_bits(self) -> float:
        return self.num_variables * float(np.log2(self.num_chains)) + self.num_chains * float(np.log2(len(VALUES)))

    def chance(self) -> float:
        return float(np.log(len(VALUES)))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        context, variables, values = self._context(rng, rows)
        row, Q = np.arange(rows)[:, None], self.num_queries
        chain, hops = np.divmod(distinct(rng, rows, self.num_variables, Q), self.num_hops + 1)
        lines = np.concatenate([context, np.full((rows, Q, SENTENCE), NO_TOKEN)], axis=1)
        code = VOCABULARY["code"]
        lines[:, -Q:, [0, 2, 4]] = code, code + 2, VOCABULARY["blank"]
        lines[:, -Q:, 1], lines[:, -Q:, 3] = variables[row, chain, hops], values[row, chain]
        asked, position = np.zeros(lines.shape, bool), np.zeros(lines.shape, np.int64)
        asked[:, -Q:, 3] = True
        position[:, -Q:, 3] = hops + 1
        return sequences(lines, asked, position, seq_len=self.seq_len, blank=VOCABULARY["blank"])

    def example(self, rng: np.random.Generator) -> TextExample:
        """All variables of one chain, in order, are asked for (as in RULER), not the value of one."""
        context, variables, values = (array[0] for array in self._context(rng, 1))
        chain = rng.integers(self.num_chains)
        render = VOCABULARY.render
        text = render(context[context != NO_TOKEN])
        first = render([VOCABULARY["code"], variables[chain, 0], VOCABULARY["code"] + 1])
        question = f"The variables that hold {render([values[chain]])} are:"
        return text_example(text + question, [render([v]) for v in variables[chain]], text.index(first))

    def _context(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lines ``[rows, N, SENTENCE]``; variables ``[rows, C, num_hops + 1]`` and values ``[rows, C]``, as tokens."""
        C, V, row = self.num_chains, self.num_variables, np.arange(rows)[:, None]
        variables = VOCABULARY["variable"] + distinct(rng, rows, len(VARIABLES), V).reshape(rows, C, -1)
        values = VOCABULARY["value"] + distinct(rng, rows, len(VALUES), C)
        chain = rng.permuted(np.tile(np.repeat(np.arange(C), self.num_hops + 1), (rows, 1)), axis=1)
        hops = occurrences(chain)[0]
        code, blank = VOCABULARY["code"], VOCABULARY["blank"]
        assignments = np.full((rows, V, SENTENCE), NO_TOKEN)
        assignments[:, :, [0, 2]] = code, code + 1
        assignments[:, :, 1] = variables[row, chain, hops]
        copied = np.stack(
            [np.full_like(hops, code), variables[row, chain, hops - 1], np.full_like(hops, blank)], axis=2
        )
        given = np.stack([values[row, chain], np.full_like(hops, blank), np.full_like(hops, NO_TOKEN)], axis=2)
        assignments[:, :, 3:COPY_LINE] = np.where(hops[:, :, None] > 0, copied, given)

        num_sentences = (self.seq_len - self.min_seq_len) // SENTENCE
        where = ascending(rng, rows, V + num_sentences, V)
        lines = np.empty((rows, V + num_sentences, SENTENCE), np.int64)
        is_sentence = np.ones(lines.shape[:2], bool)
        is_sentence[row, where] = False
        lines[is_sentence] = sentences(rng, rows, num_sentences, VOCABULARY).reshape(-1, SENTENCE)
        lines[row, where] = assignments
        return lines, variables, values
