"""What is to be done: an experiment is a list of arms (task × model × training × budget), repeated over seeds."""

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from icl_eval.budget import BACKWARD_FACTOR, Budget, Schedule
from icl_eval.config import Config
from icl_eval.models import Match, ModelConfig
from icl_eval.tasks import LongCrawl64, Task, TextTask
from icl_eval.user_code import user_code


@dataclass(frozen=True, kw_only=True)
class Training(Config):
    """AdamW, linear warm-up, decay over the arm's own horizon. Defaults are the paper's (section 4).

    Attributes:
        batch_size: sequences a step, over all processes.
        learning_rate: at its peak.
        final_learning_rate: at the last step, and at the end of every branch.
        warmup_tokens: length of the warm-up; at most a tenth of the run is used.
        start_context, start_tokens: the first tokens are trained on with sequences cut into pieces of ``start_context``
            tokens, which is cheap for mixers whose cost grows with the context; what a piece needs from the one before
            it is lost, so it is for text. Budgets count it as it is. ``None`` and 0 for training at one context.
        start_batch_size: pieces a step at the start, the first of each batch: more updates of fewer tokens, while
            gradients are large against their noise. ``None`` for all pieces of a batch.
        schedule: ``"cosine"`` decays from the warm-up to the end, and is measured on the way, at points that are not
            finished runs. ``"branched"`` keeps the rate constant, and at every share of the budget in ``branches`` has
            a finished run: a copy that decays over the last steps before that point and is measured at it.
        branches: shares of the budget, rising to 1.
        decay_fraction: share of each branch's tokens, counted from the run's start, over which it decays.
        weight_decay: on matrices only.
        betas: of AdamW.
        clip_norm: largest norm of the gradient.
        max_skipped_steps: a step whose gradient is not finite, though its loss is, is skipped; more than so many end
            the run.
        micro_batch_size: sequences that a process holds activations of at a time; ``None`` for all of its share. The
            result is the same.
        activation_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        compile: ``torch.compile`` layers and losses. What that takes is not counted in seconds.
    """

    batch_size: int = 32
    learning_rate: float = 3e-4
    final_learning_rate: float = 1e-5
    warmup_tokens: int = 2000 * 32 * 1024
    start_context: int | None = None
    start_tokens: int = 0
    start_batch_size: int | None = None
    schedule: Literal["cosine", "branched"] = "cosine"
    branches: tuple[float, ...] = (0.25, 0.5, 1.0)
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0
    max_skipped_steps: int = 10
    micro_batch_size: int | None = None
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        self.require(self.batch_size >= 1, "batch_size", "at least 1")
        self.require(self.learning_rate > 0, "learning_rate", "positive")
        self.require(
            0 <= self.final_learning_rate <= self.learning_rate,
            "final_learning_rate",
            f"between 0 and learning_rate = {self.learning_rate}",
        )
        self.require(self.warmup_tokens >= 0, "warmup_tokens", "at least 0")
        self.require(self.start_context is None or self.start_context >= 1, "start_context", "None or at least 1")
        self.require(
            self.start_tokens > 0 if self.start_context else self.start_tokens == 0,
            "start_tokens",
            "positive with a start_context, and 0 without",
        )
        self.require(
            self.start_batch_size is None or (self.start_context is not None and self.start_batch_size >= 1),
            "start_batch_size",
            "None, or at least 1 and with a start_context",
        )
        rising = all(low < high for low, high in pairwise((0.0, *self.branches)))
        self.require(rising and self.branches[-1:] == (1.0,), "branches", "shares of the budget that rise to 1.0")
        self.require(0 < self.decay_fraction <= 1, "decay_fraction", "above 0 and at most 1")
        self.require(self.weight_decay >= 0, "weight_decay", "at least 0")
        self.require(all(0 <= b < 1 for b in self.betas), "betas", "two numbers in [0, 1)")
        self.require(self.clip_norm > 0, "clip_norm", "positive")
        self.require(self.max_skipped_steps >= 0, "max_skipped_steps", "at least 0")
        self.require(
            self.micro_batch_size is None or 1 <= self.micro_batch_size <= self.batch_size,
            "micro_batch_size",
            f"None, or from 1 to batch_size = {self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True)
class Arm(Config):
    """One model on one task with one budget.

    Attributes:
        name: also the name of its folder: letters, digits, ``.``, ``_`` and ``-``.
        task: what it learns and is measured on.
        model: what learns.
        training: how.
        budget: for how long.
        matches: what the model was solved to have as much of as others; shown with what it misses.
    """

    name: str
    task: Task
    model: ModelConfig
    training: Training = field(default_factory=Training)
    budget: Budget
    matches: tuple[Match, ...] = ()

    def __post_init__(self) -> None:
        self.require(
            re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name) is not None, "name", "letters, digits, '.', '_', '-'"
        )
        if self.model.vocab_size != self.task.num_tokens:
            raise ValueError(
                f"arm {self.name!r}: ModelConfig.vocab_size = {self.model.vocab_size}, but the task "
                f"{self.task.name!r} has {self.task.num_tokens} tokens"
            )
        for field_name in ("input_dim", "loss"):
            of_model, of_task = getattr(self.model, field_name), getattr(self.task, field_name)
            if of_model != of_task:
                raise ValueError(
                    f"arm {self.name!r}: ModelConfig.{field_name} = {of_model!r}, but the task {self.task.name!r} has "
                    f"{of_task!r}"
                )

        start = self.training.start_context
        if start is None:
            return
        for problem, refused in {
            f"it must divide seq_len = {self.task.seq_len}": self.task.seq_len % start != 0,
            f"a cut takes from the task {self.task.name!r} what its answers lie in; it is for text": not isinstance(
                self.task, TextTask | LongCrawl64
            ),
            "a budget in seconds, calibrated at one context, cannot be matched": self.budget.unit == "seconds",
        }.items():
            if refused:
                raise ValueError(f"arm {self.name!r}: Training.start_context = {start}: {problem}")
        pieces = self.tokens_per_step // start
        if self.training.start_batch_size is not None and self.training.start_batch_size > pieces:
            raise ValueError(
                f"arm {self.name!r}: Training.start_batch_size = {self.training.start_batch_size}: a batch has only "
                f"{pieces} pieces of start_context = {start}"
            )

    @property
    def tokens_per_step(self) -> int:
        """Of a step at the task's context."""
        return self.training.batch_size * self.task.seq_len

    @property
    def start_tokens_per_step(self) -> int:
        """Of a step whose sequences are cut into pieces of ``start_context``."""
        if self.training.start_context is None or self.training.start_batch_size is None:
            return self.tokens_per_step
        return self.training.start_batch_size * self.training.start_context

    @property
    def start_steps(self) -> int:
        """The steps at the start whose sequences are cut into pieces of ``start_context``."""
        return math.ceil(self.training.start_tokens / self.start_tokens_per_step)

    @property
    def flops_per_step(self) -> float:
        """Training FLOPs of one step at the task's context."""
        return self._flops(self.task.seq_len, self.tokens_per_step)

    def tokens_after(self, steps: int) -> int:
        """Training tokens of a model's first ``steps`` steps."""
        short = min(steps, self.start_steps)
        return short * self.start_tokens_per_step + (steps - short) * self.tokens_per_step

    def flops_after(self, steps: int, *, causal: bool = True) -> float:
        """Training FLOPs of a model's first ``steps`` steps, or, not ``causal``, the paper's count of them."""
        short = min(steps, self.start_steps)
        start_context = self.training.start_context or self.task.seq_len
        at_start = self._flops(start_context, self.start_tokens_per_step, causal)
        return short * at_start + (steps - short) * self._flops(self.task.seq_len, self.tokens_per_step, causal)

    def steps_for(self, asked: float, spent: Callable[[int], float]) -> float:
        """Steps, whole or not, that spend ``asked`` tokens or FLOPs.

        Args:
            spent: :meth:`tokens_after` or :meth:`flops_after`.
        """
        start = self.start_steps
        if asked < (at_start := spent(start)):
            return asked / at_start * start
        return start + (asked - at_start) / (spent(start + 1) - at_start)

    def steps_at(self, share: float, steps: int) -> int:
        """The step at which a model of ``steps`` steps has spent a share of its budget, in the budget's unit."""
        if self.start_steps == 0:
            return round(share * steps)
        spent = self.flops_after if self.budget.unit == "flops" else self.tokens_after
        return round(self.steps_for(share * spent(steps), spent))

    def _flops(self, context: int, tokens: int, causal: bool = True) -> float:
        return BACKWARD_FACTOR * self.model.flops_per_token(context, causal=causal).total * tokens

    def schedule(self, seconds_per_step: float | None = None) -> Schedule:
        """The budget in steps; one in seconds needs the calibrated ``seconds_per_step``.

        Raises:
            ValueError: it is smaller than one step, or in seconds that were not calibrated.
        """
        try:
            return self.budget.match(
                flops_per_step=self.flops_per_step,
                tokens_per_step=self.tokens_per_step,
                seconds_per_step=seconds_per_step,
                start_steps=self.start_steps,
                start_tokens=self.tokens_after(self.start_steps),
                start_flops=self.flops_after(self.start_steps),
            )
        except ValueError as error:
            raise ValueError(f"arm {self.name!r}: {error}") from None


@dataclass(frozen=True, kw_only=True)
class Experiment(Config):
    """Arms to be compared.

    Attributes:
        name: also the stem of the folder that it is written to.
        question: what the comparison is to answer, in a sentence; figures and tables carry it.
        arms: with distinct names; arms of equal task share a panel in figures and are compared on the same documents.
        seeds: initialisation and training data follow the seed; held-out data do not.
        eval_sequences: held-out sequences measured; fewer where the split has fewer.
        eval_batch_size: sequences measured at a time.
        snapshots: how many log-spaced points of the budget position curves are measured at, the last one included.
    """

    name: str
    question: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...] = (0,)
    eval_sequences: int = 256
    eval_batch_size: int = 32
    snapshots: int = 9

    def __post_init__(self) -> None:
        self.require(
            re.fullmatch(r"[A-Za-z0-9][\w.-]*", self.name) is not None, "name", "letters, digits, '.', '_', '-'"
        )
        names = [arm.name for arm in self.arms]
        self.require(len(names) >= 1, "arms", "one arm at least")
        if len(set(names)) < len(names):
            raise ValueError(f"Experiment.arms: names must differ, got {', '.join(names)}")
        distinct = len(set(self.seeds)) == len(self.seeds)
        self.require(
            len(self.seeds) >= 1 and distinct and all(0 <= seed < 2**32 for seed in self.seeds),
            "seeds",
            "distinct integers from 0 to 2**32 - 1, one at least",
        )
        self.require(self.eval_batch_size >= 1, "eval_batch_size", "at least 1")
        self.require(
            self.eval_sequences >= self.eval_batch_size,
            "eval_sequences",
            f"at least one batch (eval_batch_size = {self.eval_batch_size})",
        )
        self.require(self.snapshots >= 1, "snapshots", "at least 1")

    def tasks(self) -> dict[Task, tuple[Arm, ...]]:
        """The arms by task, in the order given."""
        return {
            task: tuple(arm for arm in self.arms if arm.task == task)
            for task in dict.fromkeys(a.task for a in self.arms)
        }

    def user_code(self) -> dict[str, str]:
        """Hashes of the user's source files: results of code that has changed are not reused."""
        return user_code({type(config) for config in self.walk()})

    def fingerprint(self, **circumstances: Any) -> str:
        """Eight hexadecimal digits of all that determines the numbers; seeds have folders of their own.

        Where data lie does not count: what they are does, as a hash among the circumstances.

        Args:
            circumstances: what the config leaves open (device, precision, hashes of the data), JSON-ready.
        """
        identity = {key: value for key, value in self.identity().items() if key not in ("seeds", "question")}
        versions = {arm.name: arm.task.version for arm in self.arms}
        text = json.dumps([identity, versions, self.user_code(), circumstances], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass(frozen=True, kw_only=True)
class Untrained(Config):
    """A preset with nothing to train: arithmetic, or a benchmark.

    Attributes:
        name: of the preset.
        question: what it is to answer, in a sentence.
        commands: that give the answer.
    """

    name: str
    question: str
    commands: tuple[str, ...]
