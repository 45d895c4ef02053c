"""Recall in noise: a stream of keys and values, with noise in between, where every key that comes back is scored."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from icl_eval.tasks.base import RecallTask
from icl_eval.tasks.draws import occurrences


@dataclass(frozen=True, kw_only=True)
class NoisyRecall(RecallTask):
    """In-context recall with noise (Poli et al., "MAD", 2024).

    Every sequence maps each key to a uniform value of its own. Pairs of a uniform key and its value follow one
    another; each pair is replaced with probability ``noise`` by two noise tokens. The value of a key that occurred
    before is to be predicted. With ``num_keys=3`` (keys 0-2), ``num_values=4`` (values 3-6), ``num_noise_tokens=2``
    (tokens 7-8) and ``seq_len=10``, a sequence is

        tokens    1  4   8  7   0  4   1  4   0  4
        targets   .  .   .  .   .  .   4  .   4  .
        scored    0  0   0  0   0  0   1  0   1  0
        position                       6      4      (tokens since the key last occurred)

    The ideal loss is 0.

    Attributes:
        num_keys: what the state has to hold, a value each.
        num_values: values to choose from.
        num_noise_tokens: tokens that noise is drawn from.
        noise: share of the pairs replaced by noise.
    """

    name: ClassVar[str] = "noisy_recall"
    version: ClassVar[int] = 1

    num_keys: int = 8
    num_values: int = 8
    num_noise_tokens: int = 16
    noise: float = 0.2

    def __post_init__(self) -> None:
        self.require(self.num_keys >= 1, "num_keys", "at least 1")
        self.require(self.num_values >= 2, "num_values", "at least 2")
        self.require(0 <= self.noise < 1, "noise", "in [0, 1)")
        self.require(self.num_noise_tokens >= (self.noise > 0), "num_noise_tokens", "at least 1, or 0 without noise")
        self.require(self.seq_len >= 4 and self.seq_len % 2 == 0, "seq_len", "even and at least 4")

    @property
    def num_tokens(self) -> int:
        return self.num_keys + self.num_values + self.num_noise_tokens

    @property
    def position_label(self) -> str:
        return "distance from key to key (tokens)"

    @property
    def state_bits(self) -> float:
        return self.num_keys * float(np.log2(self.num_values))

    def chance(self) -> float:
        return float(np.log(self.num_values))

    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        num_pairs = self.seq_len // 2
        values = self.num_keys + rng.integers(0, self.num_values, (rows, self.num_keys))
        key = rng.integers(0, self.num_keys, (rows, num_pairs))
        is_noise = rng.random((rows, num_pairs)) < self.noise
        pairs = np.stack([key, np.take_along_axis(values, key, axis=1)], axis=2)
        pairs[is_noise] = rng.integers(self.num_keys + self.num_values, self.num_tokens, (is_noise.sum(), 2))
        _, last = occurrences(np.where(is_noise, self.num_keys + np.arange(num_pairs), key))
        targets, position = np.zeros((2, rows, num_pairs, 2), np.int64)
        scored = np.zeros((rows, num_pairs, 2), bool)
        scored[:, :, 0] = last >= 0
        targets[:, :, 0] = pairs[:, :, 1]
        position[:, :, 0] = 2 * (np.arange(num_pairs) - last)
        shape = rows, self.seq_len
        return {
            "tokens": pairs.reshape(shape),
            "targets": targets.reshape(shape),
            "scored": scored.reshape(shape),
            "position": (position * scored).reshape(shape),
        }
