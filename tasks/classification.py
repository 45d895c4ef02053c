"""In-context classification: every sequence has Gaussian classes of its own, to be learned from labelled examples."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from icl_eval.tasks.base import GeneratedTask
from icl_eval.tasks.draws import distinct, rounded_normal

SEQUENCES = 256
"""Sequences that the optimum is averaged over."""


@dataclass(frozen=True, kw_only=True)
class Classification(GeneratedTask):
    """In-context classification of Gaussian classes.

    A sequence draws class means ``μ ~ N(0, I)`` in ``dim`` dimensions, and alternates points ``μ + noise · ε`` of
    random classes with their labels. At every point its label is to be predicted. With ``num_classes=2``, ``dim=2`` and
    ``seq_len=6``, a sequence is

        tokens      0    2    0    1    0    2      (0 at a point, then its label)
        inputs    1.1  0.0 -0.8  0.0  0.9  0.0
                  0.3  0.0  0.2  0.0  0.4  0.0
        targets     2    .    1    .    2    .
        scored      1    0    1    0    1    0
        position    0         1         2           (examples seen)

    The Bayes predictor knows of a class seen n times, with mean x̄, that its next point is normal around
    ``n / (n + noise²) · x̄`` with variance ``noise² + noise² / (n + noise²)``, and of one not seen yet that it is normal
    around 0 with variance ``1 + noise²``.

    The few-shot form (``burstiness=b``; after Reddy, "The mechanistic basis of data dependence and abrupt learning in
    an in-context classification task", 2024, here with new classes in every sequence, so that nothing can be learned
    by heart) shows every class b times in random order, then one point more, whose label alone is scored.

    Attributes:
        num_classes: classes of a sequence.
        dim: numbers a point: a class mean has as many.
        noise: standard deviation within a class.
        burstiness: examples of each class before the one query; ``None`` for examples of random classes, all scored.
        num_labels: labels that the classes draw theirs from, without replacement; ``None`` for ``num_classes``, as it
            must be unless ``burstiness`` is given.
    """

    name: ClassVar[str] = "classification"
    version: ClassVar[int] = 1

    num_classes: int = 16
    dim: int = 16
    noise: float = 1.0
    burstiness: int | None = None
    num_labels: int | None = None

    def __post_init__(self) -> None:
        self.require(2 <= self.num_classes <= 1024, "num_classes", "in [2, 1024]")
        self.require(1 <= self.dim <= 256, "dim", "in [1, 256]")
        self.require(self.noise > 0, "noise", "positive")
        self.require(self.burstiness is None or self.burstiness >= 1, "burstiness", "None or at least 1")
        if self.burstiness is None:
            self.require(
                self.num_labels in (None, self.num_classes), "num_labels", "None or num_classes without burstiness"
            )
            self.require(self.seq_len >= 2 and self.seq_len % 2 == 0, "seq_len", "even and at least 2")
            return
        self.require(self.labels >= self.num_classes, "num_labels", f"at least num_classes = {self.num_classes}")
        need = 2 * self.num_classes * self.burstiness + 1
        self.require(self.seq_len == need, "seq_len", f"{need} = 2 · num_classes · burstiness + 1")

    @property
    def labels(self) -> int:
        return self.num_classes if self.num_labels is None else self.num_labels

    @property
    def num_tokens(self) -> int:
        return self.labels + 1

    @property
    def input_dim(self) -> int:
        return self.dim

    @property
    def num_points(self) -> int:
        """Points of a sequence."""
        return (self.seq_len + 1) // 2

    @property
    def num_positions(self) -> int:
        return self.num_points

    @property
    def position_label(self) -> str:
        return "examples seen"

    @property
    def state_bits(self) -> float:
        """A mean and a count a class, 32 bits a number."""
        return 32.0 * self.num_classes * (self.dim + 1)

    def optimum(self, position: np.ndarray) -> np.ndarray:
        """Loss of the Bayes predictor (nats), its mean over :data:`SEQUENCES` sequences of one fixed seed."""
        return bayes_loss(self)[0][position]

    def optimum_error(self, position: np.ndarray) -> np.ndarray:
        """Standard error of :meth:`optimum` (nats)."""
        return bayes_loss(self)[1][position]

    def chance(self) -> float:
        return float(np.log(self.labels))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        n, T = self.num_points, self.seq_len
        classes, points = self.examples(rng, rows)
        label = 1 + distinct(rng, rows, self.labels, self.num_classes)
        label = np.take_along_axis(label, classes, axis=1)
        tokens = np.zeros((rows, 2 * n), np.int64)
        tokens[:, 1::2] = label
        inputs = np.zeros((rows, n, 2, self.dim), np.float32)
        inputs[:, :, 0] = points
        position = np.repeat(np.arange(n), 2)[:T]
        scored = np.arange(T) % 2 == 0 if self.burstiness is None else np.arange(T) == T - 1
        return {
            "tokens": tokens[:, :T],
            "targets": np.repeat(label, 2, axis=1)[:, :T],
            "scored": np.tile(scored, (rows, 1)),
            "position": np.tile(position, (rows, 1)),
            "inputs": inputs.reshape(rows, 2 * n, self.dim)[:, :T],
        }

    def examples(self, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Classes ``[rows, points]`` and points ``[rows, points, dim]``, the query of the few-shot form included."""
        n, C = self.num_points, self.num_classes
        if self.burstiness is None:
            classes = rng.integers(0, C, (rows, n))
        else:
            context = rng.permuted(np.tile(np.arange(n - 1) % C, (rows, 1)), axis=1)
            classes = np.concatenate([context, rng.integers(0, C, (rows, 1))], axis=1)
        means = rounded_normal(rng, rows, C, self.dim)
        points = means[np.arange(rows)[:, None], classes]
        return classes, points + self.noise * rounded_normal(rng, rows, n, self.dim)


def bayes_probabilities(task: Classification, classes: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Probability ``[rows, points, num_classes]`` of each class before its label is shown, by the Bayes predictor."""
    rows, n, dim = points.shape
    sums, counts = np.zeros((rows, task.num_classes, dim)), np.zeros((rows, task.num_classes))
    probabilities = np.empty((rows, n, task.num_classes))
    row, noise = np.arange(rows), task.noise**2
    for t in range(n):
        variance = noise + noise / (counts + noise)
        distance = ((points[:, t, None] - sums / (counts + noise)[..., None]) ** 2).sum(axis=2)
        log_density = -0.5 * (dim * np.log(variance) + distance / variance)
        likelihood = np.exp(log_density - log_density.max(axis=1, keepdims=True))
        probabilities[:, t] = likelihood / likelihood.sum(axis=1, keepdims=True)
        sums[row, classes[:, t]] += points[:, t]
        counts[row, classes[:, t]] += 1
    return probabilities


@lru_cache(maxsize=16)
def bayes_loss(task: Classification) -> tuple[np.ndarray, np.ndarray]:
    """Expected loss of the Bayes predictor after 0 … examples, and its standard error, ``[points]`` nats each.

    The mean of the predictive entropy, which is the loss already averaged over the label.
    """
    probabilities = bayes_probabilities(task, *task.examples(np.random.default_rng(0), SEQUENCES))
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-300))).sum(axis=2)
    return entropy.mean(axis=0), entropy.std(axis=0) / SEQUENCES**0.5
