"""Verdicts on the paper's claims, from run folders alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from icl_eval.claims import CLAIMS, ONE_SEED_ALLOWANCE, Claim
from icl_eval.contrasts import Contrast
from icl_eval.evidence import Evidence, MissingEvidenceError
from icl_eval.gates import Gate, check
from icl_eval.kernel_times import KernelTimes
from icl_eval.run_folder import Run
from icl_eval.statistics import CONFIDENCE, Estimate, by_seed, estimate
from icl_eval.studies import Study, studies

Outcome = Literal["holds", "fails", "inconclusive", "not run"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What runs say of a claim.

    Attributes:
        claim: the claim.
        outcome: holds, fails, inconclusive or not run.
        reason: of the outcome, in a sentence.
        contrasts: with 95 % intervals.
        gates: as checked.
        study: the runs, where there are any.
        unit: of the contrasts.
    """

    claim: Claim
    outcome: Outcome
    reason: str
    contrasts: tuple[Contrast, ...] = ()
    gates: tuple[Gate, ...] = ()
    study: Study | None = None
    unit: str = ""

    @property
    def seeds(self) -> int:
        """How many the contrasts are over."""
        return len(self.study.paired_seeds) if self.study else 0

    @property
    def weakest(self) -> Contrast | None:
        """The contrast that decides: the one whose lower limit is least above its margin."""
        return min(self.contrasts, key=lambda contrast: contrast.estimate.low - contrast.margin, default=None)


def verdicts(runs: Sequence[Run], kernels: KernelTimes | None = None) -> list[Verdict]:
    """A verdict for every claim and every experiment that bears on it; ``not run`` where there is none."""
    found, experiments = [], studies(runs)
    for claim in CLAIMS:
        if claim.compute is not None:
            found.append(_computed(claim, claim.compute()))
        elif claim.time is not None:
            found.append(
                _computed(claim, claim.time(kernels))
                if kernels
                else Verdict(claim=claim, outcome="not run", reason="there is no kernel benchmark among the runs")
            )
        else:
            own = [study for study in experiments if study.preset == claim.preset]
            found += [judge(claim, study) for study in own] or [
                Verdict(claim=claim, outcome="not run", reason=f"there is no finished run of {claim.preset}")
            ]
    return found


def judge(claim: Claim, study: Study) -> Verdict:
    """The verdict of one experiment's runs on a claim about trained models."""
    evidence = Evidence(study.paired)
    if not all(arm.runs for arm in evidence.arms):
        reason = f"evidence is missing: the arms share no seed; unfinished: {', '.join(study.missing)}"
        return Verdict(claim=claim, outcome="inconclusive", reason=reason, study=study)
    gates: list[Gate] = []
    try:
        gates += [*check(study, evidence), *(premise(evidence) for premise in claim.premises)]
        contrasts = _contrasts(claim, evidence)
        if not claim.every_end:
            gates.append(_halving(claim, evidence, contrasts))
        corrected = _contrasts(claim, replace(evidence, confidence=1 - (1 - CONFIDENCE) / len(contrasts)))
    except MissingEvidenceError as error:
        reason = f"evidence is missing: {error}"
        return Verdict(claim=claim, outcome="inconclusive", reason=reason, gates=tuple(gates), study=study)
    verdict = Verdict(
        claim=claim, outcome="inconclusive", reason="", contrasts=contrasts, gates=tuple(gates), study=study,
        unit=evidence.unit,
    )  # fmt: skip
    shut = [f"{gate.name}: {gate.finding}" for gate in gates if not gate.passed]
    return replace(verdict, reason="; ".join(shut)) if shut else _decided(verdict, corrected)


def _contrasts(claim: Claim, evidence: Evidence) -> tuple[Contrast, ...]:
    assert claim.judge is not None
    return tuple(_contrast(name, drawn, margin, evidence.confidence) for name, drawn, margin in claim.judge(evidence))


def _contrast(name: str, drawn: np.ndarray, margin: float, confidence: float) -> Contrast:
    value, low, high = estimate(drawn, confidence)
    seeds = tuple(by_seed(drawn).tolist())
    allowance = ONE_SEED_ALLOWANCE if len(seeds) == 1 else 0.0
    return Contrast(name, Estimate(value, low - allowance, high + allowance), margin, seeds)


def _halving(claim: Claim, evidence: Evidence, contrasts: Sequence[Contrast]) -> Gate:
    half = _contrasts(claim, replace(evidence, end=0.5))
    turned = [
        whole.name
        for whole, halved in zip(contrasts, half, strict=True)
        if (whole.estimate.value > whole.margin) != (halved.estimate.value > halved.margin)
    ]
    finding = f"half the budget turns {'; '.join(turned)}" if turned else "half the budget gives the same signs"
    return Gate("halving", not turned, finding)


def _decided(verdict: Verdict, corrected: Sequence[Contrast]) -> Verdict:
    against = [contrast.name for contrast in corrected if contrast.refutes]
    undecided = [contrast.name for contrast in verdict.contrasts if not contrast.supports]
    if against:
        return replace(verdict, outcome="fails", reason=f"refuted: {'; '.join(against)}")
    if undecided:
        return replace(verdict, reason=f"not decided: {'; '.join(undecided)}")
    return replace(verdict, outcome="holds", reason="every contrast is clear of its margin")


def _computed(claim: Claim, contrasts: Sequence[Contrast]) -> Verdict:
    verdict = Verdict(claim=claim, outcome="inconclusive", reason="", contrasts=tuple(contrasts))
    return _decided(verdict, contrasts)
