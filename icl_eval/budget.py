"""Budgets: how much training an arm gets, and what that is in steps."""

from dataclasses import dataclass
from typing import NamedTuple

from icl_eval.config import Config

BACKWARD_FACTOR = 3
"""Training FLOPs over forward FLOPs: the backward pass multiplies twice for each product of the forward pass."""


class Schedule(NamedTuple):
    """What a matched budget comes to.

    Attributes:
        steps: optimiser steps.
        tokens: training tokens.
        flops: training FLOPs, forward and backward, without recomputation.
        mismatch: (spent - asked) / asked, in the unit the budget is given in; at most half a step.
    """

    steps: int
    tokens: int
    flops: float
    mismatch: float


@dataclass(frozen=True, kw_only=True)
class Budget(Config):
    """Training budget of an arm: exactly one of its fields.

    Attributes:
        flops: training FLOPs, forward and backward, causal, on the mathematical state, without recomputation.
        tokens: training tokens.
        seconds: training time on the device at hand, without measuring; a short calibration turns it into steps, which
            are recorded before training and kept when the run resumes.
    """

    flops: float | None = None
    tokens: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        given = {unit: asked for unit in ("flops", "tokens", "seconds") if (asked := getattr(self, unit)) is not None}
        if len(given) != 1:
            raise ValueError(f"Budget needs exactly one of flops, tokens and seconds, got {given or 'none'}")
        self.require(self.asked > 0, self.unit, "positive")

    @property
    def unit(self) -> str:
        """The field that is given."""
        return "flops" if self.flops is not None else "tokens" if self.tokens is not None else "seconds"

    @property
    def asked(self) -> float:
        """The value of the field that is given."""
        return getattr(self, self.unit)

    def match(
        self,
        *,
        flops_per_step: float,
        tokens_per_step: int,
        seconds_per_step: float | None = None,
        start_steps: int = 0,
        start_tokens: int = 0,
        start_flops: float = 0.0,
    ) -> Schedule:
        """The number of steps that comes nearest to the budget.

        Args:
            flops_per_step, tokens_per_step: what a step costs.
            seconds_per_step: as calibrated; only a budget in seconds needs it.
            start_steps, start_tokens, start_flops: steps at the start that cost others, and what they cost together.

        Raises:
            ValueError: the budget is smaller than one step, or in seconds and nothing was calibrated.
        """
        costs = {"flops": flops_per_step, "tokens": tokens_per_step, "seconds": seconds_per_step}
        per_step = costs[self.unit]
        if per_step is None:
            raise ValueError(f"a budget of {self.asked:g} seconds becomes steps only on the device that trains")
        at_start = {"flops": start_flops, "tokens": float(start_tokens), "seconds": 0.0}[self.unit]
        if self.asked < at_start + per_step:
            what = "the start and one step" if start_steps else "one step"
            raise ValueError(
                f"a budget of {self.asked:.3g} {self.unit} is smaller than {what} ({at_start + per_step:.3g} "
                f"{self.unit}): raise the budget, or lower batch_size or seq_len"
            )
        steps = round((self.asked - at_start) / per_step)
        return Schedule(
            start_steps + steps,
            start_tokens + steps * tokens_per_step,
            start_flops + steps * flops_per_step,
            (at_start + steps * per_step) / self.asked - 1,
        )
