"""In-context Markov chains: every sequence has transitions of its own, to be estimated while reading."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from icl_eval.tasks.base import GeneratedTask

CHAINS = 1024
"""Chains that the optimum is averaged over."""


@dataclass(frozen=True, kw_only=True)
class Markov(GeneratedTask):
    """In-context Markov chains (Edelman et al., "The evolution of statistical induction heads", 2024).

    A sequence draws its transition rows from Dirichlet(1, …, 1): one row a state at order 1, one a pair of states at
    order 2. The first ``order`` tokens are uniform, which tells nothing about the rows, so that counting is exactly
    Bayes: ``(c_ij + 1) / (c_i + K)``. Every token but the first is to be predicted. With ``num_states=2`` and
    ``seq_len=4``, the string ``0 1 1 0 1`` is

        tokens    0    1    1    0
        targets   1    1    0    1
        scored    1    1    1    1
        position  1    2    3    4     (tokens seen)
        Bayes    1/2  1/2  1/3  2/3    (its probability of the target)

    Attributes:
        num_states: K; the state has to hold ``K ** (order + 1)`` counts.
        order: how many tokens the next one depends on.
    """

    name: ClassVar[str] = "markov"
    version: ClassVar[int] = 2

    num_states: int = 8
    order: int = 1

    def __post_init__(self) -> None:
        self.require(2 <= self.num_states <= 64, "num_states", "in [2, 64]")
        self.require(self.order in (1, 2), "order", "1 or 2")
        self.require(self.seq_len > self.order, "seq_len", f"more than order = {self.order}")

    @property
    def num_tokens(self) -> int:
        return self.num_states

    @property
    def state_bits(self) -> float:
        """Bits of ``K ** (order + 1)`` counts of an average row's visits each: about what the Bayes predictor keeps."""
        rows = self.num_states**self.order
        return rows * self.num_states * float(np.log2(1 + self.seq_len / rows))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        string = _strings(rng, rows, self.seq_len + 1, self.num_states, self.order)
        position = np.tile(np.arange(1, self.seq_len + 1), (rows, 1))
        return {
            "tokens": string[:, :-1].copy(),
            "targets": string[:, 1:].copy(),
            "scored": np.ones(position.shape, bool),
            "position": position,
        }

    def optimum(self, position: np.ndarray) -> np.ndarray:
        """Expected loss of the Bayes predictor (nats), by :func:`bayes_loss`; see :meth:`optimum_error`."""
        return bayes_loss(self.num_states, self.order, self.seq_len)[0][position]

    def optimum_error(self, position: np.ndarray) -> np.ndarray:
        """Standard error of :meth:`optimum` (nats)."""
        return bayes_loss(self.num_states, self.order, self.seq_len)[1][position]


def _strings(rng: np.random.Generator, count: int, length: int, K: int, order: int) -> np.ndarray:
    """int64 ``[count, length]``, a chain of its own each.

    Row r of all chains occupies ``(r, r + 1]`` of one sorted array of cumulated probabilities, so a step of all
    chains is one search. Uniforms are float32 (multiples of 2⁻²⁴): ``r + u`` is then exact and stays below r + 1.
    """
    rows = K**order
    cumulated = np.cumsum(rng.standard_exponential((count * rows, K)), axis=1)
    cumulated /= cumulated[:, -1:]
    table = (cumulated + np.arange(count * rows)[:, None]).ravel()
    uniform = rng.random((length, count), dtype=np.float32).astype(np.float64)
    string = np.empty((length, count), np.int64)
    string[:order] = rng.integers(0, K, (order, count))
    base = rows * np.arange(count)
    for t in range(order, length):
        row = base + string[t - 1]
        if order == 2:
            row += K * string[t - 2]
        string[t] = np.searchsorted(table, row + uniform[t], side="right") - K * row
    return np.ascontiguousarray(string.T)


@lru_cache(maxsize=16)
def bayes_loss(K: int, order: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected loss of the Bayes predictor after 0 … ``length`` tokens and its standard error, ``[length + 1]`` nats.

    The mean over :data:`CHAINS` chains of one fixed seed of the predictive entropy, which is the loss already averaged
    over the next token: ``H = ln(c_i + K) - Σ_j (c_ij + 1) ln(c_ij + 1) / (c_i + K)``.
    """
    string = _strings(np.random.default_rng(0), CHAINS, length, K, order).T
    counts, visits, sums = (np.zeros(CHAINS * n) for n in (K ** (order + 1), K**order, K**order))
    base = K**order * np.arange(CHAINS)
    mean, error = np.full(length + 1, np.log(K)), np.zeros(length + 1)
    row = base
    for t in range(length):
        if t >= order:
            cell = K * row + string[t]
            seen = counts[cell] + 1
            sums[row] += (seen + 1) * np.log(seen + 1) - seen * np.log(seen)
            counts[cell] = seen
            visits[row] += 1
        if t >= order - 1:
            row = base + string[t] if order == 1 else base + K * string[t - 1] + string[t]
            total = visits[row] + K
            entropy = np.log(total) - sums[row] / total
            mean[t + 1], error[t + 1] = entropy.mean(), entropy.std() / np.sqrt(CHAINS)
    return mean, error
