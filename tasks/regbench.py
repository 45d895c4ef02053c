"""In-context learning of regular languages: every sequence has a random automaton of its own."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from icl_eval.tasks.base import GeneratedTask, Split
from icl_eval.tasks.ngram import ngram_probabilities

SEQUENCES = 1024
"""Sequences that the oracle's loss is averaged over; the n-grams' is over a quarter as many."""
NGRAM_ORDERS = (1, 2, 3, 5)
HELDOUT_SHARE = 0.25
_PATHS = 6
"""Edges of a state are repeated to this number, a multiple of 1, 2 and 3, so that a uniform draw needs no count."""
_HASH_DEPTH = 8


class Automata(NamedTuple):
    """A deterministic automaton a row; state 0 starts, every state accepts.

    Attributes:
        symbol, target: int64 ``[rows, states, 6]``, the edges of each state, each as often as the others.
        legal: bool ``[rows, states, alphabet]``, which symbols a state allows.
    """

    symbol: np.ndarray
    target: np.ndarray
    legal: np.ndarray


@dataclass(frozen=True, kw_only=True)
class RegBench(GeneratedTask):
    """Random regular languages (Akyürek et al., "In-context language learning", 2024).

    A sequence draws an automaton: 4 to ``max_states`` states, an alphabet of 4 to ``max_symbols`` of the symbols, and
    for every state 1 to ``max_edges`` outgoing edges with different symbols to different other states. Its words are
    walks from the first state over 1 to ``max_word`` uniformly drawn edges, joined by ``|``. Every symbol is to be
    predicted; where a word ends is not. With an automaton ``A -1-> B``, ``B -2-> A``, ``B -3-> C``, ``C -2-> B``, where
    0 stands for ``|``, a sequence is

        tokens    0    1    2    1    0    1    3    2
        targets   1    2    1    .    1    3    2    .     (a symbol; the dots are word ends)
        scored    1    1    1    0    1    1    1    0
        position  1    2    3         5    6    7          (tokens seen)
        oracle    1   1/2   1         1   1/2   1          (its probability of the target)

    The optimum is the loss of an oracle that is told the automaton: a lower bound, met late. Automata of the held-out
    split accept other languages than those of training, whatever their states are called. N-gram predictors with
    back-off, which learn from each sequence alone, are the anchors of figures.

    Attributes:
        max_states: states an automaton has at most (4 at least): the memory that tracking its state takes.
        max_symbols: symbols of the vocabulary, and of an alphabet at most.
        max_edges: edges out of a state at most: the entropy of a symbol.
        max_word: symbols of a word at most: how far the start of a word lies behind.
    """

    name: ClassVar[str] = "regbench"
    version: ClassVar[int] = 1

    seq_len: int = 512
    max_states: int = 12
    max_symbols: int = 18
    max_edges: int = 3
    max_word: int = 49

    def __post_init__(self) -> None:
        self.require(self.seq_len >= 2, "seq_len", "at least 2")
        self.require(5 <= self.max_states <= 64, "max_states", "in [5, 64]")
        self.require(4 <= self.max_symbols <= 256, "max_symbols", "in [4, 256]")
        self.require(1 <= self.max_edges <= 3, "max_edges", "in [1, 3]: the smallest automata have 4 states")
        self.require(self.max_word >= 1, "max_word", "at least 1")

    @property
    def num_tokens(self) -> int:
        return self.max_symbols + 1

    @property
    def state_bits(self) -> float:
        """Bits of the edges of an average automaton: a symbol and a state each."""
        states, symbols = (4 + self.max_states) / 2, (4 + self.max_symbols) / 2
        return states * (1 + self.max_edges) / 2 * float(np.log2(symbols) + np.log2(states - 1))

    def optimum(self, position: np.ndarray) -> np.ndarray:
        """The oracle's loss (nats): a lower bound, its mean over :data:`SEQUENCES` sequences of one fixed seed."""
        return oracle_loss(self)[position]

    def anchors(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """Losses of the n-grams (nats), means over the bins of positions 1, 2, 3-4, 5-8, 9-16, …"""
        return {f"{order}-gram": ngram_loss(self, order)[position] for order in NGRAM_ORDERS}

    def chance(self) -> float:
        return float(np.log(self.max_symbols))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        return self.draw_split(rng, rows, "train")

    def draw_split(self, rng: np.random.Generator, rows: int, split: Split) -> dict[str, np.ndarray]:
        string, _, _ = self.strings(rng, rows, split)
        position = np.tile(np.arange(1, self.seq_len + 1), (rows, 1))
        return {"tokens": string[:, :-1], "targets": string[:, 1:], "scored": string[:, 1:] > 0, "position": position}

    def strings(self, rng: np.random.Generator, rows: int, split: Split) -> tuple[np.ndarray, np.ndarray, Automata]:
        """Strings ``[rows, seq_len + 1]``, the states after each token, and the automata that wrote them."""
        length = self.seq_len + 1
        automata = self.automata(rng, rows, split)
        sizes = rng.integers(1, self.max_word + 1, (rows, length // 2 + 1))
        starts = 1 + np.cumsum(sizes + 1, axis=1) - (sizes + 1)
        words = int((starts < length).sum(axis=1).max())
        sizes, starts = sizes[:, :words], starts[:, :words]
        string, states = np.zeros((rows, length), np.int64), np.zeros((rows, length), np.int64)
        flat_target = (automata.target + self.max_states * np.arange(rows)[:, None, None]).ravel() * _PATHS
        flat_symbol = automata.symbol.ravel()
        at = np.repeat(np.arange(rows) * self.max_states * _PATHS, words)
        first, size = (starts + length * np.arange(rows)[:, None]).ravel(), sizes.ravel()
        limit = np.repeat(length * np.arange(1, rows + 1), words)
        draws = rng.integers(0, _PATHS, (self.max_word, rows * words), dtype=np.int8)
        for step in range(self.max_word):
            edge = at + draws[step]
            at = flat_target[edge]
            place = first + step
            here = (step < size) & (place < limit)
            string.ravel()[place[here]] = flat_symbol[edge[here]]
            states.ravel()[place[here]] = at[here] // _PATHS % self.max_states
        return string, states, automata

    def automata(self, rng: np.random.Generator, rows: int, split: Split) -> Automata:
        """Random automata whose languages belong to a split, by a hash of all words of up to eight symbols."""
        parts: list[Automata] = []
        found = 0
        while found < rows:
            drawn = self._automata(rng, rows + rows // 2 + 8)
            heldout = _language_hash(drawn) < HELDOUT_SHARE
            parts.append(Automata(*(array[heldout == (split == "heldout")] for array in drawn)))
            found += len(parts[-1].symbol)
        return Automata(*(np.concatenate(arrays)[:rows] for arrays in zip(*parts, strict=True)))

    def _automata(self, rng: np.random.Generator, rows: int) -> Automata:
        S, A, E = self.max_states, self.max_symbols, self.max_edges
        num_states = rng.integers(4, S + 1, (rows, 1, 1))
        num_symbols = rng.integers(4, A + 1, (rows, 1))
        num_edges = rng.integers(1, E + 1, (rows, S, 1))
        alphabet = np.argsort(rng.random((rows, A), dtype=np.float32), axis=1) < num_symbols
        symbol_key = rng.random((rows, S, A), dtype=np.float32) + ~alphabet[:, None]
        target_key = rng.random((rows, S, S), dtype=np.float32) + (np.eye(S, dtype=bool) | (np.arange(S) >= num_states))
        path = np.arange(_PATHS) % num_edges
        symbol, target = (
            np.take_along_axis(np.argpartition(key, range(E), axis=2)[..., :E], path, axis=2)
            for key in (symbol_key, target_key)
        )
        legal = np.zeros((rows, S, A + 1), bool)
        np.put_along_axis(legal, symbol + 1, True, axis=2)
        return Automata(symbol + 1, target, legal)


def _language_hash(automata: Automata) -> np.ndarray:
    """A number in [0, 1) for every automaton that depends on nothing but its words of up to eight symbols."""
    symbol, target, _ = automata
    row = np.arange(len(symbol))[:, None, None]
    code = np.ones(symbol.shape[:2], np.uint64)
    for _ in range(_HASH_DEPTH):
        mixed = code[row, target] * np.uint64(0x9E3779B97F4A7C15) + symbol.astype(np.uint64)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
        code = mixed.sum(axis=2)
    return code[:, 0] / 2**64


@lru_cache(maxsize=16)
def oracle_loss(task: RegBench) -> np.ndarray:
    """Loss of a predictor that is told the automaton, after 0 … ``seq_len`` tokens, nats."""
    string, states, automata = task.strings(np.random.default_rng(0), SEQUENCES, "heldout")
    num_edges = automata.legal.sum(axis=2)
    loss = np.log(np.take_along_axis(num_edges, states[:, :-1], axis=1))
    return _mean_by_octave(loss, string[:, 1:] > 0)


@lru_cache(maxsize=64)
def ngram_loss(task: RegBench, order: int) -> np.ndarray:
    """Loss of an n-gram predictor with back-off after 0 … ``seq_len`` tokens, nats."""
    string, _, _ = task.strings(np.random.default_rng(0), SEQUENCES // 4, "heldout")
    probabilities = ngram_probabilities(string, np.arange(task.num_tokens) > 0, task.num_tokens, order)
    scored = string[:, 1:] > 0
    chosen = np.take_along_axis(probabilities, string[:, 1:, None], axis=2)[..., 0]
    return _mean_by_octave(-np.log(np.where(scored, chosen, 1.0)), scored)


def _mean_by_octave(loss: np.ndarray, scored: np.ndarray) -> np.ndarray:
    """``[T + 1]``: at every position the mean over its bin of positions 1, 2, 3-4, 5-8, …; that of 1 at position 0."""
    T = loss.shape[1]
    octave = np.ceil(np.log2(np.arange(1, T + 1))).astype(np.int64)
    mean = np.bincount(octave, (loss * scored).sum(axis=0)) / np.bincount(octave, scored.sum(axis=0))
    return mean[np.append(0, octave)]
