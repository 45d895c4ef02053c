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
        flops: training FLOPs, forward and backward, as executed (causal).
        tokens: training tokens.
    """

    flops: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        given = [value for value in (self.flops, self.tokens) if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"Budget needs exactly one of flops and tokens, got flops={self.flops!r}, tokens={self.tokens!r}"
            )
        self.require(given[0] > 0, "tokens" if self.flops is None else "flops", "positive")

    def match(self, *, flops_per_step: float, tokens_per_step: int) -> Schedule:
        """The number of steps that comes nearest to the budget.

        Raises:
            ValueError: the budget is smaller than one step.
        """
        unit, asked, per_step = (
            ("tokens", self.tokens, tokens_per_step) if self.flops is None else ("FLOPs", self.flops, flops_per_step)
        )
        assert asked is not None
        if asked < per_step:
            raise ValueError(
                f"a budget of {asked:.3g} {unit} is smaller than one step ({per_step:.3g} {unit}): "
                "raise the budget, or lower batch_size or seq_len"
            )
        steps = round(asked / per_step)
        return Schedule(steps, steps * tokens_per_step, steps * flops_per_step, steps * per_step / asked - 1)
