"""Evidence for a claim: the arms of one experiment, read from run folders, and functions of their losses.

Losses are "draws" (:func:`icl_eval.statistics.draws`): a value, one a seed, and resamples, for plain arithmetic. All
arms are restricted to the held-out documents that every one of them was measured on, so that their differences are
paired, also where their contexts differ.
"""

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Literal, cast

import numpy as np

from icl_eval.experiment import Arm
from icl_eval.models import Flops
from icl_eval.positions import Positions
from icl_eval.run_folder import Run, RunFolderError
from icl_eval.statistics import CONFIDENCE, cross_fitted, draws, each_once
from icl_eval.tasks import TextTask

Spent = Literal["flops", "seconds", "tokens"]
ENDS = (0.25, 0.5, 1.0)
"""Shares of the budget at which decay branches end and arms are compared."""
RANGE_TOLERANCE = 0.03
"""How far, as a share, an arm may be asked for a loss outside the amounts that it was measured at."""


class MissingEvidenceError(ValueError):
    """An arm, a seed or a measurement that a claim needs is not there."""


@dataclass(frozen=True)
class ArmRuns:
    """The runs of one arm, a seed each, in order.

    Attributes:
        name: of the arm.
        runs: finished ones, diverged ones included.
    """

    name: str
    runs: tuple[Run, ...]

    @cached_property
    def arm(self) -> Arm:
        return self.runs[0].arm

    @property
    def mixer(self) -> str:
        """Name of the mixer, or the names of a hybrid's."""
        return "+".join(dict.fromkeys(mixer.name for mixer in self.arm.model.mixers))

    @property
    def backbone(self) -> str:
        return type(self.arm.model.backbone).__name__.lower()

    @property
    def context(self) -> int:
        return self.arm.task.seq_len

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @cached_property
    def positions(self) -> tuple[Positions, ...]:
        """Measurements, one a seed.

        Raises:
            MissingEvidenceError: a run diverged, or its measurement is damaged or lacking.
        """
        for run in self.runs:
            if run.diverged:
                raise MissingEvidenceError(f"{self.name}, seed {run.seed}, ended in NaN at step {run.status['step']}")
        try:
            return tuple(run.positions for run in self.runs if run.positions is not None)
        except RunFolderError as error:
            raise MissingEvidenceError(f"{self.name}: {error}") from error

    @property
    def state(self) -> int:
        """Elements of state of the whole model at the arm's context, by definition of the architecture."""
        return self.runs[0].config["costs"]["state_elements"]["mathematical"]

    @property
    def parameters(self) -> int:
        return self.runs[0].config["costs"]["parameters"]

    @property
    def weight_state_ratio(self) -> float:
        """Weight FLOPs for one state FLOP, causal."""
        return Flops(**self.runs[0].config["costs"]["forward_flops_per_token"]).weight_state_ratio

    @property
    def paper_count(self) -> float:
        """The paper's count of the training FLOPs, in which nothing is causal."""
        return self.arm.flops_after(self.runs[0].config["schedule"]["steps"], causal=False)

    @property
    def ends(self) -> tuple[float, ...]:
        """Shares of the budget at which finished models were measured."""
        training = self.arm.training
        return training.branches if training.schedule == "branched" else ENDS

    def range(self, unit: Spent) -> tuple[float, float]:
        """What had been spent at the first and at the last end point."""
        spent = self.spent(unit)
        return float(spent[self.snapshot(self.ends[0])]), float(spent[-1])

    def spent(self, unit: Spent) -> np.ndarray:
        """What training had spent at every measurement, ``[K]``, the mean over seeds."""
        return np.mean([getattr(positions, unit) for positions in self.positions], axis=0)

    def snapshot(self, end: float) -> int:
        """The measurement taken at a share of the budget.

        Raises:
            MissingEvidenceError: there is none.
        """
        spent = self.spent(cast(Spent, self.arm.budget.unit))
        share = spent / spent[-1]
        step = self.positions[0].step
        nearest = int(np.abs(share - end).argmin())
        if abs(share[nearest] - end) > max(0.02, 0.5 / step[-1]):
            raise MissingEvidenceError(f"{self.name} was not measured at {end:g} of its budget")
        return nearest


@dataclass(frozen=True)
class Evidence:
    """The arms of one experiment, and how they are to be read.

    Attributes:
        arms: in the experiment's order.
        confidence: of intervals.
        end: share of the budget at which "the end" is: 1, or 0.5 to see whether halving the budget changes anything.
    """

    arms: tuple[ArmRuns, ...]
    confidence: float = CONFIDENCE
    end: float = 1.0

    def pick(self, mixer: str | None = None, context: int | None = None, backbone: str | None = None) -> ArmRuns:
        """The one arm with this mixer, context and backbone; ``None`` leaves a trait open.

        Raises:
            MissingEvidenceError: there is none, or several.
        """
        wanted = {"mixer": mixer, "context": context, "backbone": backbone}
        wanted = {trait: value for trait, value in wanted.items() if value is not None}
        found = [arm for arm in self.arms if all(getattr(arm, trait) == value for trait, value in wanted.items())]
        if len(found) != 1:
            traits = ", ".join(f"{trait} {value}" for trait, value in wanted.items())
            raise MissingEvidenceError(
                f"needs one arm with {traits}; there {'are ' + str(len(found)) if found else 'is none'}"
            )
        return found[0]

    def contexts(self) -> tuple[int, ...]:
        return tuple(sorted({arm.context for arm in self.arms}))

    def backbones(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(arm.backbone for arm in self.arms))

    @cached_property
    def documents(self) -> np.ndarray:
        """Held-out documents that every arm was measured on.

        Raises:
            MissingEvidenceError: there are fewer than two.
        """
        measured = (positions.documents for arm in self.arms for positions in arm.positions)
        common = reduce(np.intersect1d, measured)
        if len(common) < 2:
            raise MissingEvidenceError(f"the arms share {len(common)} held-out documents: they cannot be paired")
        return common

    @property
    def unit(self) -> str:
        """Of losses: nats per byte, or nats per token where tokens were not measured as text."""
        return "nats/byte" if all(_is_bytes(arm) for arm in self.arms) else "nats/token"

    @property
    def unit_by_position(self) -> str:
        """Of losses by position, which are those of tokens."""
        return "nats/byte" if all(_reads_bytes(arm) for arm in self.arms) else "nats/token"

    def best(self, arm: ArmRuns, end: float | None = None) -> np.ndarray:
        """Best-context loss at a share of the budget (``self.end`` if not given)."""
        return self._best(arm, arm.snapshot(self.end if end is None else end))

    def best_at(self, arm: ArmRuns, unit: Spent, amount: float) -> np.ndarray:
        """Best-context loss after spending ``amount``, interpolated in its logarithm between the measured end points.

        The curve is the parabola through the three nearest end points: a straight line between points of a convex
        curve would speak against the arm that is interpolated.

        Raises:
            MissingEvidenceError: the arm was not measured that early or late.
        """
        low, high = arm.range(unit)
        if not low * (1 - RANGE_TOLERANCE) <= amount <= high * (1 + RANGE_TOLERANCE):
            raise MissingEvidenceError(f"{arm.name} spans {low:.3g} to {high:.3g} {unit}: {amount:.3g} is outside")
        ends = np.array([arm.snapshot(end) for end in arm.ends])
        x = np.log(arm.spent(unit)[ends])
        nearest = np.sort(np.abs(x - np.log(amount)).argsort()[:3])
        snapshots, x = ends[nearest], x[nearest]
        weights = [
            np.prod([(np.log(amount) - x[j]) / (x[i] - x[j]) for j in range(len(x)) if j != i]) for i in range(len(x))
        ]
        return np.sum([w * self._best(arm, int(k)) for w, k in zip(weights, snapshots, strict=True)], axis=0)

    def gain(self, arm: ArmRuns, early: int, end: float | None = None, late: int | None = None) -> np.ndarray:
        """In-context learning: loss in the octave that ends at position ``early`` less loss in the one up to ``late``.

        An octave that ends at e holds the positions e/2 + 1 … e; ``late`` is the end of the context if not given.
        """
        late = arm.context if late is None else late
        return self.octave(arm, early, end) - self.octave(arm, late, end)

    def octave(self, arm: ArmRuns, last: int, end: float | None = None) -> np.ndarray:
        """Loss in the octave of positions that ends at ``last``."""
        sums, counts = self.cells(arm, arm.snapshot(self.end if end is None else end))
        edges = arm.positions[0].bin_edges
        chosen = (edges[:-1] > last // 2) & (edges[1:] - 1 <= last)
        if not chosen.any() or not counts[:, chosen].sum() > 0:
            raise MissingEvidenceError(f"{arm.name} has no measurement at positions {last // 2 + 1} to {last}")
        return draws(sums[:, :, chosen].sum(axis=2), counts[:, chosen].sum(axis=1), self.confidence)

    def _best(self, arm: ArmRuns, snapshot: int) -> np.ndarray:
        """Best-context loss, cross-fitted (:func:`icl_eval.statistics.cross_fitted`)."""
        losses, reached = cross_fitted(*self.cells(arm, snapshot))
        return draws(losses, reached.astype(float), self.confidence)

    def cells(self, arm: ArmRuns, snapshot: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums ``[seeds, N, bins]`` (nats) and what they are divided by ``[N, bins]``, on the common documents.

        Every document counts once (:func:`icl_eval.statistics.each_once`): arms of other contexts read other numbers
        of its windows.
        """
        first = arm.positions[0]
        keep = np.isin(first.documents, self.documents)
        for positions in arm.positions[1:]:
            if not np.array_equal(positions.document_count[np.isin(positions.documents, self.documents)],
                                  first.document_count[keep]):  # fmt: skip
                raise MissingEvidenceError(f"the seeds of {arm.name} were not measured on the same held-out text")
        sums = [p.document_nll_sum[snapshot][np.isin(p.documents, self.documents)] for p in arm.positions]
        size = (first.document_count if first.document_bytes is None else first.document_bytes)[keep]
        return each_once(np.stack(sums), size)


def _reads_bytes(arm: ArmRuns) -> bool:
    return isinstance(arm.arm.task, TextTask) and arm.arm.task.num_tokens == 256


def _is_bytes(arm: ArmRuns) -> bool:
    return _reads_bytes(arm) or getattr(arm.positions[0], "document_bytes", None) is not None
