"""What tasks that read as text are made of: lines of pieces of text, a token each."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from icl_eval.tasks.base import RecallTask
from icl_eval.tasks.draws import distinct
from icl_eval.tasks.words import ADJECTIVES, AGENTS, OBJECTS, VERBS

NO_TOKEN = -1
"""Fills the end of short lines; no sequence holds it."""


class TextExample(NamedTuple):
    """One question about a context, as text.

    Attributes:
        prompt: context and question; ends without white space, so that a blank goes between it and the answer.
        answers: strings to be found, in order, white space stripped.
        choices: options to be ranked, the answer among them; empty where there are none.
        depth: where in the prompt the evidence begins: 0 at its start, 1 at its end.
    """

    prompt: str
    answers: tuple[str, ...]
    choices: tuple[str, ...]
    depth: float


class Vocabulary:
    """Pieces of text with a token each, in named groups; ``vocabulary[group]`` is the first token of a group."""

    def __init__(self, **groups: Sequence[str]):
        self.pieces = tuple(piece for group in groups.values() for piece in group)
        self._first = dict(zip(groups, accumulate((len(group) for group in groups.values()), initial=0), strict=False))

    def __getitem__(self, group: str) -> int:
        return self._first[group]

    def render(self, tokens: Iterable[int]) -> str:
        return "".join(self.pieces[token] for token in tokens)


@dataclass(frozen=True, kw_only=True)
class LineTask(RecallTask):
    """A task whose tokens are pieces of text, and which asks questions at the end of its sequences."""

    @property
    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """The pieces."""

    @property
    @abstractmethod
    def min_seq_len(self) -> int:
        """Tokens of the shortest sequence with these settings."""

    @property
    def num_tokens(self) -> int:
        return len(self.vocabulary.pieces)

    def require_room(self) -> None:
        """Raise ``ValueError`` unless ``seq_len`` holds what the other fields ask for."""
        self.require(self.seq_len >= self.min_seq_len, "seq_len", f"at least {self.min_seq_len} with these settings")

    def example(self, rng: np.random.Generator) -> TextExample:
        """A sequence up to its last question, as text; earlier questions stand there with their answers."""
        drawn = {name: array[0] for name, array in self.draw(rng, 1).items()}
        scored, tokens = drawn["scored"], drawn["tokens"]
        end = int(np.flatnonzero(scored)[-1]) + 1
        begin = int(np.append(-1, np.flatnonzero(~scored[:end]))[-1]) + 1
        prompt = self.vocabulary.render(tokens[: begin + 1])
        answer = self.vocabulary.render(drawn["targets"][begin:end])
        evidence = self.vocabulary.render(tokens[: begin + 1 - drawn["position"][begin]])
        return text_example(prompt, [answer], len(evidence))


def text_example(prompt: str, answers: Iterable[str], evidence: int, choices: Sequence[str] = ()) -> TextExample:
    """An example without white space at its ends; its evidence begins at character ``evidence`` of ``prompt``."""
    stripped = prompt.strip()
    depth = (evidence - prompt.index(stripped)) / len(stripped)
    return TextExample(stripped, tuple(answer.strip() for answer in answers), tuple(choices), depth)


def sequences(
    lines: np.ndarray, asked: np.ndarray, position: np.ndarray, *, seq_len: int, blank: int
) -> dict[str, np.ndarray]:
    """Lines end to end as sequences, filled with ``blank`` at their start.

    Args:
        lines: tokens ``[B, N, W]``, lines ended by :data:`NO_TOKEN`; all sequences of one length, at most
            ``seq_len + 1``.
        asked: bool ``[B, N, W]``, tokens to be predicted.
        position: int64 ``[B, N, W]``, the axis on which they are reported.
    """
    present = lines != NO_TOKEN
    rows = len(lines)

    def flat(array: np.ndarray, fill: int) -> np.ndarray:
        whole = np.full((rows, seq_len + 1), fill, array.dtype)
        joined = array[present].reshape(rows, -1)
        whole[:, seq_len + 1 - joined.shape[1] :] = joined
        return whole

    whole = flat(lines, blank)
    return {
        "tokens": whole[:, :-1].copy(),
        "targets": whole[:, 1:].copy(),
        "scored": flat(asked, False)[:, 1:].copy(),
        "position": flat(position, 0)[:, 1:].copy(),
    }


def line_starts(lines: np.ndarray) -> np.ndarray:
    """Tokens before each line, int64 ``[B, N]``."""
    widths = (lines != NO_TOKEN).sum(axis=2)
    return widths.cumsum(axis=1) - widths


def digits(rng: np.random.Generator, rows: int, count: int, num_digits: int, first: tuple[int, int]) -> np.ndarray:
    """int64 ``[rows, count, num_digits]``: numbers distinct within a row, first digit in ``[first[0], first[1])``."""
    tail = 10 ** (num_digits - 1)
    number = first[0] * tail + distinct(rng, rows, (first[1] - first[0]) * tail, count)
    return number[:, :, None] // 10 ** np.arange(num_digits - 1, -1, -1) % 10


HAYSTACK: dict[str, Sequence[str]] = {
    "the": ("The ", "the ", ".\n"),
    "adjective": tuple(f"{word} " for word in ADJECTIVES),
    "agent": tuple(f"{word} " for word in AGENTS),
    "verb": tuple(f"{word} " for word in VERBS),
    "object": tuple(OBJECTS),
}
"""Groups of a vocabulary that :func:`sentences` writes in."""
SENTENCE = 8
"""Tokens of a sentence of the haystack: ``The |old |fisher |carried |the |red |lamp|.\\n``"""
_SLOTS = ("adjective", "agent", "verb", "adjective", "object")


def sentences(rng: np.random.Generator, rows: int, count: int, vocabulary: Vocabulary) -> np.ndarray:
    """int64 ``[rows, count, SENTENCE]``: sentences of a haystack, none of them twice in a row."""
    sizes = [len(HAYSTACK[slot]) for slot in _SLOTS]
    choice = distinct(rng, rows, int(np.prod(sizes)), count)
    the = vocabulary["the"]
    lines = np.empty((rows, count, SENTENCE), np.int64)
    lines[:, :, [0, 4, 7]] = the, the + 1, the + 2
    for column, slot, size in zip((1, 2, 3, 5, 6), _SLOTS, sizes, strict=True):
        choice, word = np.divmod(choice, size)
        lines[:, :, column] = vocabulary[slot] + word
    return lines
