"""Gates of validity: what must be true of runs before they say anything about a claim."""

from typing import Any, NamedTuple

from icl_eval.evidence import Evidence, Spent
from icl_eval.statistics import estimate
from icl_eval.studies import Study

VALID_GAIN = 0.05
"""Nats per byte by which the loss must fall from the second octave to the last."""
LONG_GAIN = 0.01
"""Nats per byte by which it must fall past the position that a claim about long contexts starts from."""
FEWEST_TRIES = 4
"""Learning rates that must have been tried for every arm: as many as icl-eval tune tries before it extends a grid."""
MISMATCH = 0.02
"""Largest relative difference between a budget and what was spent."""
DECIDING_SCALES = ("h200", "paper")

GATES = {
    "scale": f"the scale is one that can decide ({' or '.join(DECIDING_SCALES)}); smoke runs never do",
    "complete": "every arm has finished with every seed, without NaN, and was measured",
    "schedule": "every arm was trained at a constant rate with decay branches, so that its ends at a quarter, half and "
    "the whole budget are finished runs; points on a cosine curve are not",
    "budget": f"every arm spent its budget to within {MISMATCH:.0%}",
    "learning rate": f"every arm's rate is the best of at least {FEWEST_TRIES} tried by one rule for all (`icl-eval "
    "tune`: a grid, extended while the best lies at its edge) and is not at an edge; tries on other documents or from "
    "another start count where there are none on these, and the finding says so; without a ledger the gate is shut",
    "gain": f"the loss of the strongest arm, and of the softmax arm if there is one, falls by at least {VALID_GAIN} "
    "nats per byte from the second octave of positions (3 and 4) to the last, with an interval clear of zero",
    "halving": "half the budget puts every contrast on the same side of its margin (claims that are tested at a "
    "quarter, half and the whole budget contain this)",
}
"""The gates of every claim about trained models."""


class Gate(NamedTuple):
    """A gate as found: its name, whether it was passed, and what was found."""

    name: str
    passed: bool
    finding: str


def check(study: Study, evidence: Evidence) -> list[Gate]:
    """The gates of :data:`GATES`, but for halving, which needs a claim."""
    return [
        Gate("scale", study.scale in DECIDING_SCALES, f"{study.scale or 'no'} scale"),
        _complete(study),
        _schedule(evidence),
        _budget(evidence),
        _learning_rate(evidence),
        _gain(evidence),
    ]


def long_gain(evidence: Evidence, early: int) -> Gate:
    """Whether context past ``early`` is worth anything to the softmax arm (to the strongest, where there is none)."""
    measured = [arm for arm in evidence.arms if arm.mixer == "softmax" and arm.context > early]
    measured = measured or [arm for arm in evidence.arms if arm.context > early]
    gains = {arm.name: estimate(evidence.gain(arm, early), evidence.confidence) for arm in measured}
    name, (value, low, high) = max(gains.items(), key=lambda item: item[1].value)
    passed = bool(value >= LONG_GAIN and low > 0)
    return Gate("long gain", passed, f"{name} gains {value:.3f} [{low:.3f}, {high:.3f}] past position {early:,}")


def alone(evidence: Evidence) -> Gate:
    """Whether seconds can be compared: every run had its device to itself, and all devices were of one kind."""
    environments = {f"{arm.name}, seed {run.seed}": run.env for arm in evidence.arms for run in arm.runs}
    shared = [name for name, env in environments.items() if env.get("runs_per_device") != 1]
    devices = sorted({str(env.get("device")) for env in environments.values()})
    if shared:
        return Gate("alone", False, f"shared the device with other runs, or did not record it: {'; '.join(shared)}")
    return Gate("alone", len(devices) == 1, f"one run at a time on {' and '.join(devices)}")


def equal(what: str, values: dict[str, float], tolerance: float) -> Gate:
    """Whether something is equal in all arms, up to a relative tolerance."""
    spread = max(values.values()) / min(values.values()) - 1
    listed = ", ".join(f"{name} {value:,.4g}" for name, value in values.items())
    return Gate(f"equal {what}", bool(spread <= tolerance), f"{listed} (a spread of {spread:.1%})")


def _complete(study: Study) -> Gate:
    missing = study.missing
    return Gate("complete", not missing, f"unfinished: {', '.join(missing)}" if missing else "all runs finished")


def _schedule(evidence: Evidence) -> Gate:
    others = [arm.name for arm in evidence.arms if arm.arm.training.schedule != "branched"]
    return Gate("schedule", not others, f"no decay branches: {', '.join(others)}" if others else "decay branches")


def _budget(evidence: Evidence) -> Gate:
    worst = max((abs(run.config["schedule"]["mismatch"]), arm.name) for arm in evidence.arms for run in arm.runs)
    return Gate("budget", worst[0] <= MISMATCH, f"at most {worst[0]:.2%} from its budget ({worst[1]})")


def _learning_rate(evidence: Evidence) -> Gate:
    tunings = [(arm.name, run.config.get("tuning")) for arm in evidence.arms for run in arm.runs]
    shut = dict.fromkeys(f"{name}: {found}" for name, tuning in tunings if (found := _untuned(tuning)) is not None)
    tries = {name: len(tuning["learning_rates"]) for name, tuning in tunings if tuning}
    listed = ", ".join(f"{name} {count}" for name, count in tries.items())
    reused = dict.fromkeys(name for name, tuning in tunings if tuning and tuning.get("reused"))
    origin = f" (on other documents or from another start: {', '.join(reused)})" if reused else ""
    return Gate(
        "learning rate", not shut, "; ".join(shut) if shut else f"inside the grid of every arm; tries: {listed}{origin}"
    )


def _untuned(tuning: dict[str, Any] | None) -> str | None:
    """What is wrong with how an arm's learning rate was found (see :func:`icl_eval.tuning.apply_ledger`)."""
    if not tuning:
        return "not checked, no ledger"
    rates = ", ".join(f"{rate:g}" for rate in tuning["learning_rates"])
    if len(tuning["learning_rates"]) < FEWEST_TRIES:
        return f"only {len(tuning['learning_rates'])} rates were tried ({rates})"
    if tuning["at_edge"]:
        return f"{tuning['learning_rate']:g} is at the edge of what was tried ({rates})"
    return None


def _gain(evidence: Evidence) -> Gate:
    gains = {arm.name: (arm, estimate(evidence.gain(arm, 4), evidence.confidence)) for arm in evidence.arms}
    strongest = min(evidence.arms, key=lambda arm: evidence.best(arm)[0]).name
    judged = {strongest, *(name for name, (arm, _) in gains.items() if arm.mixer == "softmax")}
    shut = [
        f"{name} gains {value:.3f} [{low:.3f}, {high:.3f}]"
        for name in sorted(judged)
        for value, low, high in [gains[name][1]]
        if not (value >= VALID_GAIN and low > 0)
    ]
    least = min(float(gains[name][1].value) for name in judged)
    return Gate("gain", not shut, "; ".join(shut) if shut else f"at least {least:.3f} {evidence.unit}")


def spent(evidence: Evidence, unit: Spent) -> dict[str, float]:
    """What every arm had spent at its end."""
    return {arm.name: float(arm.spent(unit)[-1]) for arm in evidence.arms}
