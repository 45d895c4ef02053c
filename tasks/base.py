"""What a task is: a config that builds a source of batches, scored where the answer can only come from the context."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from icl_eval.config import Config

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")


class Batch(NamedTuple):
    """B sequences of T tokens, on the CPU.

    Attributes:
        tokens: int64 ``[B, T]``, the model's input.
        targets: int64 ``[B, T]``; ``targets[b, t]`` is to be predicted from ``tokens[b, : t + 1]``. Free where
            unscored.
        scored: bool ``[B, T]``; losses and accuracies count these positions only.
        position: int64 ``[B, T]``, the axis on which the task reports, at least 0. Free where unscored.
        document: int64 ``[B]``, the independent unit of resampling that each sequence belongs to.
    """

    tokens: Tensor
    targets: Tensor
    scored: Tensor
    position: Tensor
    document: Tensor


class Source(Protocol):
    """A task's data for one seed. ``batch`` is pure: the same arguments give the same batch on any machine."""

    def batch(self, split: Split, index: int, batch_size: int) -> Batch:
        """Batch ``index`` of a split. The held-out split does not depend on the seed, so that runs are paired."""

    def num_sequences(self, split: Split) -> int | None:
        """How many different sequences the split holds; ``None`` where they are generated without end."""

    def manifest(self) -> dict[str, Any]:
        """Where the data came from, JSON-ready, hash included; empty where the config determines everything."""


@runtime_checkable
class TextSource(Source, Protocol):
    """A source whose tokens are text, so that losses with different tokenisers can be compared in bits per byte."""

    def token_bytes(self) -> np.ndarray | None:
        """Bytes of UTF-8 that each token stands for, int64 ``[num_tokens]``; ``None`` where it is not known."""

    def vocabulary(self) -> str | None:
        """The tokeniser as the contents of a ``tokenizer.json``; ``None`` where bytes are tokens, or not known."""


@dataclass(frozen=True, kw_only=True)
class Task(Config, ABC):
    """Base of every task's config.

    Attributes:
        seq_len: tokens a sequence.
        name: the task's name on the command line.
        version: raised whenever the same config would give other batches.
        position_label: what ``Batch.position`` measures, with its unit.
    """

    seq_len: int = 256
    name: ClassVar[str]
    version: ClassVar[int]
    position_label: ClassVar[str] = "context seen (tokens)"

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Size of the vocabulary."""

    @property
    def num_positions(self) -> int:
        """Positions lie in ``[0, num_positions)``."""
        return self.seq_len + 1

    @abstractmethod
    def build(self, seed: int) -> Source:
        """The task's data; training sequences differ between seeds, held-out sequences do not."""

    def optimum(self, position: np.ndarray) -> np.ndarray | None:
        """Lowest possible expected loss (nats) at each position, or ``None`` where it is not known."""
        return None

    def chance(self) -> float:
        """Loss (nats) of the best guess that ignores the context."""
        return float(np.log(self.num_tokens))


def generator(seed: int, split: Split, index: int) -> np.random.Generator:
    """The random stream of one batch: independent of every other batch, and of the seed for the held-out split."""
    seed = seed if split == "train" else 0
    return np.random.default_rng([seed, SPLITS.index(split), index])


def to_tensor(array: np.ndarray) -> Tensor:
    """int64 (or bool) tensor of an array."""
    return torch.from_numpy(array if array.dtype == bool else array.astype(np.int64, copy=False))
