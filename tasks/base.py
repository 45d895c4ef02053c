"""What a task is: a config that builds a source of batches, scored where the answer can only come from the context."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from icl_eval.config import Config

Split = Literal["train", "heldout"]
Loss = Literal["cross_entropy", "squared_error"]
SPLITS: tuple[Split, ...] = ("train", "heldout")
HELDOUT_BLOCK = 32
"""Generated held-out sequences that share a random stream."""


class Batch(NamedTuple):
    """B sequences of T tokens, on the CPU.

    Attributes:
        tokens: int64 ``[B, T]``, the model's input.
        targets: int64 ``[B, T]``, or float32 where the task's loss is the squared error; ``targets[b, t]`` is to be
            predicted from ``tokens[b, : t + 1]`` and ``inputs[b, : t + 1]``. Free where unscored.
        scored: bool ``[B, T]``; losses and accuracies count these positions only.
        position: int64 ``[B, T]``, the axis on which the task reports, at least 0. Free where unscored.
        document: int64 ``[B]``, the independent unit of resampling that each sequence belongs to.
        inputs: float32 ``[B, T, input_dim]``, real vectors that the model reads beside the tokens (zero where there is
            a token only); ``None`` where the task has none.
    """

    tokens: Tensor
    targets: Tensor
    scored: Tensor
    position: Tensor
    document: Tensor
    inputs: Tensor | None = None

    @property
    def read(self) -> tuple[Tensor, ...]:
        """What a model's loss is a function of: tokens, targets, and inputs if there are any."""
        return (self.tokens, self.targets) if self.inputs is None else (self.tokens, self.targets, self.inputs)

    def cut(self, length: int, count: int | None = None) -> "Batch":
        """The same tokens as sequences of ``length``, which must divide T; row b's pieces lie in order.

        Args:
            count: the first so many pieces only.
        """
        pieces = self.tokens.shape[1] // length

        def cut(x: Tensor) -> Tensor:
            return x.unflatten(1, (pieces, length)).flatten(0, 1)[:count]

        return Batch(
            tokens=cut(self.tokens),
            targets=cut(self.targets),
            scored=cut(self.scored),
            position=cut(self.position),
            document=self.document.repeat_interleave(pieces)[:count],
            inputs=None if self.inputs is None else cut(self.inputs),
        )


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
        loss: of a scored target: the cross-entropy of a token in nats, or the squared error of a number.
    """

    seq_len: int = 256
    name: ClassVar[str]
    version: ClassVar[int]
    loss: ClassVar[Loss] = "cross_entropy"

    @property
    def loss_unit(self) -> str:
        """The unit of losses, :meth:`optimum`, :meth:`chance` and :meth:`anchors`."""
        return "nats" if self.loss == "cross_entropy" else "squared error"

    @property
    def position_label(self) -> str:
        """What ``Batch.position`` measures, with its unit."""
        return "context seen (tokens)"

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Size of the vocabulary."""

    @property
    def input_dim(self) -> int:
        """Size of the real vectors beside the tokens; 0 for none."""
        return 0

    @property
    def num_positions(self) -> int:
        """Positions lie in ``[0, num_positions)``."""
        return self.seq_len + 1

    @abstractmethod
    def build(self, seed: int) -> Source:
        """The task's data; training sequences differ between seeds, held-out sequences do not."""

    def optimum(self, position: np.ndarray) -> np.ndarray | None:
        """Lowest possible expected loss at each position, or ``None`` where it is not known."""
        return None

    def anchors(self, position: np.ndarray) -> dict[str, np.ndarray]:
        """Expected losses of explicit predictors at each position, by name, to compare models with in figures."""
        return {}

    def chance(self) -> float:
        """Loss of the best guess that ignores the context."""
        return float(np.log(self.num_tokens))

    @property
    def state_bits(self) -> float | None:
        """Bits that a state must carry to reach the optimum, or ``None`` where it is not known."""
        return None


@dataclass(frozen=True, kw_only=True)
class GeneratedTask(Task):
    """A task whose sequences are drawn without end; a sequence is its own document."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        """``rows`` sequences: every field of :class:`Batch` but ``document``; ``inputs`` where the task has them."""

    def draw_split(self, rng: np.random.Generator, rows: int, split: Split) -> dict[str, np.ndarray]:
        """As :meth:`draw`, for tasks whose splits differ in more than their random streams."""
        return self.draw(rng, rows)

    def build(self, seed: int) -> "GeneratedSource":
        return GeneratedSource(self, seed)


@dataclass(frozen=True, kw_only=True)
class RecallTask(GeneratedTask):
    """A generated task whose answers stand in the context: the ideal loss is 0 everywhere."""

    def optimum(self, position: np.ndarray) -> np.ndarray:
        return np.zeros(len(position))


class GeneratedSource:
    """Sequences of a :class:`GeneratedTask` for one seed.

    A training batch has a stream of its own. Held-out sequences have one for every :data:`HELDOUT_BLOCK` of them, so
    that sequence r is the same in whatever batch size it is read.
    """

    def __init__(self, task: GeneratedTask, seed: int):
        self.task, self.seed = task, seed
        self._last_block: tuple[int, dict[str, np.ndarray]] | None = None

    def batch(self, split: Split, index: int, batch_size: int) -> Batch:
        first = index * batch_size
        if split == "train":
            arrays = self.task.draw_split(generator(self.seed, split, index), batch_size, split)
        else:
            blocks = range(first // HELDOUT_BLOCK, (first + batch_size - 1) // HELDOUT_BLOCK + 1)
            parts = [self._block(block) for block in blocks]
            rows = slice(first % HELDOUT_BLOCK, first % HELDOUT_BLOCK + batch_size)
            arrays = {name: np.concatenate([part[name] for part in parts])[rows] for name in parts[0]}
        if not set(Batch._fields[:4]) <= arrays.keys() <= set(Batch._fields) - {"document"}:
            raise ValueError(
                f"the task {self.task.name!r} draws {', '.join(arrays)}; it must draw {', '.join(Batch._fields[:4])}, "
                "and inputs where input_dim is above 0"
            )
        document = np.arange(first, first + batch_size)
        return Batch(document=to_tensor(document), **{name: to_tensor(array) for name, array in arrays.items()})

    def _block(self, block: int) -> dict[str, np.ndarray]:
        """A block of held-out sequences; the last one is kept, for batches smaller than a block."""
        if self._last_block is None or self._last_block[0] != block:
            rng = generator(self.seed, "heldout", block)
            self._last_block = block, self.task.draw_split(rng, HELDOUT_BLOCK, "heldout")
        return self._last_block[1]

    def num_sequences(self, split: Split) -> None:
        return None

    def manifest(self) -> dict[str, Any]:
        return {}


def generator(seed: int, split: Split, index: int) -> np.random.Generator:
    """The random stream of one batch (or block of held-out sequences), which no other batch shares.

    That of the held-out split does not depend on the seed.
    """
    seed = seed if split == "train" else 0
    return np.random.default_rng([seed, SPLITS.index(split), index])


def to_tensor(array: np.ndarray) -> Tensor:
    """int64 tensor of an array; bool and float32 are kept."""
    return torch.from_numpy(array if array.dtype in (bool, np.float32) else array.astype(np.int64, copy=False))
