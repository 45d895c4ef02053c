"""The path of a run: at which learning rate its steps are taken, where it forks, and after which it is measured."""

import math
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from icl_eval.experiment import Arm, Training


class Leg(NamedTuple):
    """Steps of one model, one after the other; step ``n`` is always trained on training batch ``n``.

    Attributes:
        branch: the share of the budget that the branch ends at, ``None`` on the trunk (and on a cosine).
        start, stop: steps that the model has taken before and after.
        measured: the steps after which it is measured.
        spent_before: steps that the run has taken by then, on the trunk and on all branches.
        restores: whether the run goes on from the leg's start when the leg has ended.
    """

    branch: float | None
    start: int
    stop: int
    measured: tuple[int, ...]
    spent_before: int
    restores: bool


class Plan(NamedTuple):
    """All legs of a run, in the order in which they are trained.

    A ``cosine`` is one leg. ``branched`` is a trunk at a constant rate; wherever a branch's decay begins, the model is
    set aside, the branch is trained to its end and measured, and the trunk goes on from the model set aside. The last
    branch ends the run.
    """

    legs: tuple[Leg, ...]
    warmup: int

    def spent(self, after: Callable[[int], float]) -> float:
        """What all legs cost.

        Args:
            after: the arm's ``flops_after`` or ``tokens_after``.
        """
        return sum(after(leg.stop) - after(leg.start) for leg in self.legs)

    @property
    def steps_spent(self) -> int:
        """Steps of all legs."""
        return self.legs[-1].spent_before + self.legs[-1].stop - self.legs[-1].start

    def legs_after(self, steps_spent: int) -> Iterator[Leg]:
        """The legs that have not ended when the run has taken that many steps."""
        return (leg for leg in self.legs if leg.spent_before + leg.stop - leg.start > steps_spent)

    def measured_before(self, steps_spent: int) -> list[int]:
        """The model's steps at all measurements taken when the run has taken that many steps."""
        spent = [(leg.spent_before + step - leg.start, step) for leg in self.legs for step in leg.measured]
        return [step for total, step in spent if total <= steps_spent]


def make_plan(arm: Arm, steps: int, snapshots: int) -> Plan:
    """The legs that a budget of ``steps`` steps comes to.

    Args:
        arm: for its schedule.
        steps: of the model measured last.
        snapshots: how many points of a cosine are measured; branches are measured at their ends instead.

    Raises:
        ValueError: so few steps that branches would coincide.
    """
    training = arm.training
    warmup = min(math.ceil(arm.steps_for(training.warmup_tokens, arm.tokens_after)), steps // 10)
    if training.schedule == "cosine":
        return Plan((Leg(None, 0, steps, tuple(snapshot_steps(arm, steps, snapshots)), 0, False),), warmup)
    ends = [arm.steps_at(share, steps) for share in training.branches]
    if ends[0] < 1 or len(set(ends)) < len(ends):
        raise ValueError(
            f"arm {arm.name!r}: branches = {training.branches} do not end at different steps when there are {steps}"
        )
    decays = [training.decay_fraction * arm.tokens_after(end) / arm.tokens_per_step for end in ends]
    forks = [end - math.ceil(decay) for end, decay in zip(ends, decays, strict=True)]
    if forks[0] < arm.start_steps:
        raise ValueError(
            f"arm {arm.name!r}: the branch at {training.branches[0]:g} of the budget begins at step {forks[0]}, before "
            f"sequences of full length are seen (start_tokens = {training.start_tokens}: {arm.start_steps} steps)"
        )
    paths: list[tuple[float | None, int, int]] = []
    for share, begin, fork, end in zip(training.branches, [0, *forks], forks, ends, strict=False):
        paths += [(None, begin, fork), (share, fork, end)]
    paths = [path for path in paths if path[1] < path[2]]
    spent = accumulate((stop - start for _, start, stop in paths), initial=0)
    legs = tuple(
        Leg(share, start, stop, (stop,) if share else (), before, share is not None and stop < steps)
        for (share, start, stop), before in zip(paths, spent, strict=False)
    )
    return Plan(legs, min(warmup, forks[0]))


def learning_rate_at(training: Training, plan: Plan, leg: Leg, step: int) -> float:
    """Learning rate of step ``leg.start``, …, ``leg.stop - 1``.

    Branches decay by ``1 - sqrt`` of their progress (Hägele et al., 2024).
    """
    if step < plan.warmup:
        return training.learning_rate * (step + 1) / (plan.warmup + 1)
    if training.schedule == "cosine":
        height = 0.5 * (1 + math.cos(math.pi * (step - plan.warmup) / max(leg.stop - 1 - plan.warmup, 1)))
    elif leg.branch is None:
        height = 1.0
    else:
        height = 1 - math.sqrt((step + 1 - leg.start) / (leg.stop - leg.start))
    return height * training.learning_rate + (1 - height) * training.final_learning_rate


def snapshot_steps(arm: Arm, steps: int, snapshots: int) -> list[int]:
    """Steps to measure after, ``steps`` included, at log-spaced shares of the budget: of its last seven octaves."""
    shares = np.geomspace(max(1 / 128, 1 / steps), 1, snapshots) if snapshots > 1 else [1.0]
    return sorted({max(1, arm.steps_at(share, steps)) for share in shares})
