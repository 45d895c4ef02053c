"""In-context regression: every sequence has a function of its own, to be learned from its examples."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import ClassVar, Literal

import numpy as np

from icl_eval.tasks.base import GeneratedTask, Loss
from icl_eval.tasks.draws import distinct, rounded_normal

SEQUENCES = 48
"""Sequences that the optimum is averaged over."""
MAX_SUPPORTS = 5000
"""Supports of a sparse function that the optimum enumerates at most."""


@dataclass(frozen=True, kw_only=True)
class Regression(GeneratedTask):
    """In-context regression (Garg et al., "What can transformers learn in-context?", 2022).

    A sequence alternates points ``x ~ N(0, I)`` of ``dim`` numbers with the values ``y = f(x) + noise · ε`` of a
    function of its own, in units in which ``f(x)`` has variance 1. At every point its value is to be predicted, and the
    loss is the squared error. With ``dim=2``, ``seq_len=4`` and weights (1, -1) (before the division by √dim), a
    sequence is

        tokens      0      1      0      1          (what the vector is: 0 a point, 1 a value)
        inputs    1.0    0.0    0.5    0.0          (the point, of dim numbers,
                  0.5    0.0   -1.0    0.0
                  0.0    0.35   0.0    1.06          and the value)
        targets   0.35    .     1.06    .           (0.5 / √2, 1.5 / √2)
        scored    1       0     1       0
        position  0             1                   (examples seen)

    The losses are those of the field's plots, squared error over dimension. Functions:

    - ``"linear"``: ``w·x / √dim`` with ``w ~ N(0, I)``. The optimum is the risk of ridge regression with the noise's
      variance as its penalty, which is Bayes; without noise, ``max(0, 1 - examples / dim)``.
    - ``"sparse"``: only ``nonzero`` of the weights are not zero. The optimum is the risk of the Bayes predictor, which
      averages over all supports (where there is noise, and no more than 5,000 supports).
    - ``"network"``: a network of one hidden ReLU layer with normal weights. The optimum is not known.

    Attributes:
        dim: numbers a point; a linear function has as many weights.
        noise: standard deviation of the noise on ``w·x`` of variance ``dim``, as in the literature: that on the value
            is ``noise / √dim``.
        function: ``"linear"``, ``"sparse"`` or ``"network"``.
        nonzero: weights of a sparse function that are not zero.
        hidden: width of the network's hidden layer.
    """

    name: ClassVar[str] = "regression"
    version: ClassVar[int] = 1
    loss: ClassVar[Loss] = "squared_error"

    dim: int = 20
    noise: float = 1.0
    function: Literal["linear", "sparse", "network"] = "linear"
    nonzero: int = 3
    hidden: int = 100

    def __post_init__(self) -> None:
        self.require(self.seq_len >= 2 and self.seq_len % 2 == 0, "seq_len", "even and at least 2: a point and a value")
        self.require(1 <= self.dim <= 256, "dim", "in [1, 256]")
        self.require(self.noise >= 0, "noise", "at least 0")
        self.require(self.function in ("linear", "sparse", "network"), "function", "'linear', 'sparse' or 'network'")
        self.require(1 <= self.nonzero <= self.dim or self.function != "sparse", "nonzero", f"in [1, dim = {self.dim}]")
        self.require(1 <= self.hidden <= 1024, "hidden", "in [1, 1024]")

    @property
    def num_tokens(self) -> int:
        return 2

    @property
    def input_dim(self) -> int:
        return self.dim + 1

    @property
    def num_positions(self) -> int:
        return self.seq_len // 2

    @property
    def position_label(self) -> str:
        return "examples seen"

    @property
    def state_bits(self) -> float | None:
        """Of a linear function: the ``dim · (dim + 3) / 2`` numbers of the normal equations, 32 bits each."""
        return 32.0 * (self.dim * (self.dim + 3) // 2) if self.function == "linear" else None

    def optimum(self, position: np.ndarray) -> np.ndarray | None:
        bound = self._optimum()
        return None if bound is None else bound[0][position]

    def optimum_error(self, position: np.ndarray) -> np.ndarray | None:
        """Standard error of :meth:`optimum`."""
        bound = self._optimum()
        return None if bound is None else bound[1][position]

    def anchors(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """Least squares (of least norm where examples are too few), for linear and sparse functions."""
        if self.function == "network":
            return {}
        return {"least squares": least_squares_risk(self.dim, self.noise, self.num_positions)[position]}

    def chance(self) -> float:
        return 1 + self.noise**2 / self.dim

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        points = rounded_normal(rng, rows, self.num_positions, self.dim)
        noise = self.noise / self.dim**0.5 * rounded_normal(rng, rows, self.num_positions)
        values = self._function(rng, points) + noise
        inputs = np.zeros((rows, self.num_positions, 2, self.input_dim), np.float32)
        inputs[:, :, 0, : self.dim] = points
        inputs[:, :, 1, self.dim] = values
        tokens = np.tile([0, 1], (rows, self.num_positions))
        return {
            "tokens": tokens,
            "targets": np.repeat(values, 2, axis=1).astype(np.float32),
            "scored": tokens == 0,
            "position": np.tile(np.repeat(np.arange(self.num_positions), 2), (rows, 1)),
            "inputs": inputs.reshape(rows, self.seq_len, self.input_dim),
        }

    def _function(self, rng: np.random.Generator, points: np.ndarray) -> np.ndarray:
        """``[rows, examples]`` values of a function of each row's own at ``points`` ``[rows, examples, dim]``."""
        rows = len(points)
        if self.function == "network":
            layer = rounded_normal(rng, rows, self.dim, self.hidden)
            head = rounded_normal(rng, rows, self.hidden, 1)
            features = np.maximum(points @ layer, 0)
            return (features @ head)[..., 0] * (2 / (self.hidden * self.dim)) ** 0.5
        weights = rounded_normal(rng, rows, self.dim, 1)
        if self.function == "sparse":
            zero = distinct(rng, rows, self.dim, self.dim)[:, self.nonzero :]
            np.put_along_axis(weights, zero[..., None], 0, axis=1)
            return (points @ weights)[..., 0] / self.nonzero**0.5
        return (points @ weights)[..., 0] / self.dim**0.5

    def _optimum(self) -> tuple[np.ndarray, np.ndarray] | None:
        if self.function == "linear" and self.noise == 0:
            risk = np.maximum(0, 1 - np.arange(self.num_positions) / self.dim)
            return risk, np.zeros_like(risk)
        nonzero = self.dim if self.function == "linear" else self.nonzero
        if self.function == "network" or self.noise == 0 or comb(self.dim, nonzero) > MAX_SUPPORTS:
            return None
        return bayes_risk(self.dim, nonzero, self.noise, self.num_positions)


@lru_cache(maxsize=16)
def bayes_risk(dim: int, nonzero: int, noise: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Expected squared error of the Bayes predictor after 0 … ``count - 1`` examples, and its standard error.

    The mean over :data:`SEQUENCES` sequences of one fixed seed. On each support the posterior is normal, and follows
    the examples one by one; supports are weighted by their evidence. The error at a new point is then
    ``noise² / dim + E|w - E w|²``. With all weights nonzero, this is ridge regression.
    """
    rng = np.random.default_rng(0)
    supports = np.array(list(combinations(range(dim), nonzero)))
    weight_of = np.eye(dim)[supports.ravel()]
    variance = noise**2 / dim
    weights = np.zeros((SEQUENCES, dim))
    chosen = supports[rng.integers(0, len(supports), SEQUENCES)]
    np.put_along_axis(weights, chosen, rng.standard_normal((SEQUENCES, nonzero)) / nonzero**0.5, axis=1)
    mean = np.zeros((SEQUENCES, len(supports), nonzero))
    covariance = np.tile(np.eye(nonzero) / nonzero, (SEQUENCES, len(supports), 1, 1))
    log_evidence = np.zeros((SEQUENCES, len(supports)))
    risk, error = np.empty(count), np.empty(count)
    for k in range(count):
        posterior = np.exp(log_evidence - log_evidence.max(axis=1, keepdims=True))
        posterior /= posterior.sum(axis=1, keepdims=True)
        second = np.trace(covariance, axis1=2, axis2=3) + (mean**2).sum(axis=2)
        average = (posterior[..., None] * mean).reshape(SEQUENCES, -1) @ weight_of
        at_sequence = variance + (posterior * second).sum(axis=1) - (average**2).sum(axis=1)
        risk[k], error[k] = at_sequence.mean(), at_sequence.std() / SEQUENCES**0.5

        point = rng.standard_normal((SEQUENCES, dim))
        value = (point * weights).sum(axis=1) + variance**0.5 * rng.standard_normal(SEQUENCES)
        x = point[:, supports]
        gain = np.einsum("rsij,rsj->rsi", covariance, x)
        spread = variance + (gain * x).sum(axis=2)
        surprise = value[:, None] - (mean * x).sum(axis=2)
        log_evidence -= 0.5 * (np.log(spread) + surprise**2 / spread)
        mean += gain * (surprise / spread)[..., None]
        covariance -= gain[..., :, None] * (gain / spread[..., None])[..., None, :]
    return risk, error


@lru_cache(maxsize=16)
def least_squares_risk(dim: int, noise: float, count: int) -> np.ndarray:
    """Expected squared error of least squares of least norm on a linear function after 0 … ``count - 1`` examples.

    Exact (Hastie et al., "Surprises in high-dimensional ridgeless least squares interpolation", 2022), and infinite
    next to ``dim`` examples where there is noise.
    """
    k, variance = np.arange(count), noise**2 / dim
    with np.errstate(divide="ignore", invalid="ignore"):
        few = np.maximum(0, 1 - k / dim) + variance * k / (dim - k - 1)
        many = variance * dim / (k - dim - 1)
    spread = np.where(k < dim - 1, few, np.where(k > dim + 1, many, np.inf if noise else 0.0))
    if noise == 0:
        spread = np.maximum(0, 1 - k / dim)
    return variance + spread
