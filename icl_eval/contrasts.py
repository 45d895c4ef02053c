"""Contrasts: for every claim of the paper, numbers that lie above a margin if it is true.

They come from trained models (:class:`icl_eval.evidence.Evidence`), from the kernel benchmark, or from arithmetic.
``icl_eval.claims`` says in words what each of them tests.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from icl_eval.arithmetic import PAPER_STATE, PAPER_WSFR, WSFR_CONTEXTS, WSFR_MIXERS, state_rows, wsfr
from icl_eval.evidence import ENDS, ArmRuns, Evidence, MissingEvidenceError, Spent
from icl_eval.kernel_times import POWER, KernelTimes
from icl_eval.statistics import Estimate

EQUAL = 0.02
"""Nats per byte within which two losses count as equal."""
NO_GAIN = 0.02
"""Nats per byte: a gain from context below it counts as none."""
LITTLE, MOST = 0.25, 0.75
"""Shares of softmax's gain that count as almost none of it, and as nearly all."""
NOT_BETTER = 0.01
"""Nats per byte by which an arm may lead another and still count as not better."""
SPEEDUPS = {64: 3.3, 32: 8.6}
"""The paper's speed-up over flash attention at 65,536 tokens, by head size."""
SLOPE = 0.1
"""Change of log tokens/s per log context that counts as none; softmax's is allowed to differ as much from -1."""
INTERIOR = 0.05
"""How much longer, as a share, the smallest and the largest chunk must take than the best one."""


class Contrast(NamedTuple):
    """A number that exceeds ``margin`` if the claim is true, with its interval and its value for every seed."""

    name: str
    estimate: Estimate
    margin: float
    by_seed: tuple[float, ...] = ()

    @property
    def supports(self) -> bool:
        return bool(self.estimate.low > self.margin and all(value > self.margin for value in self.by_seed))

    @property
    def refutes(self) -> bool:
        return bool(self.estimate.high < self.margin)


Tests = list[tuple[str, np.ndarray, float]]
"""Name, draws and margin of the contrasts of a claim about trained models."""


def state_helps(evidence: Evidence) -> Tests:
    contexts = evidence.contexts()
    if len(contexts) != 3:
        raise MissingEvidenceError(f"needs three contexts, there are {len(contexts)}")
    short, middle, long = contexts
    tests: Tests = []
    for backbone in evidence.backbones():
        ahead = {
            context: _between(evidence, "linear", "softmax", context=context, backbone=backbone) for context in contexts
        }
        tests += [
            (f"{backbone}, {short:,}: linear - softmax", ahead[short], -EQUAL),
            (f"{backbone}, {short:,}: softmax - linear", -ahead[short], -EQUAL),
            (f"{backbone}, {middle:,}: linear - softmax", ahead[middle], 0.0),
            (f"{backbone}, {long:,}: linear - softmax", ahead[long], 0.0),
            (f"{backbone}: linear - softmax, {long:,} less {middle:,}", ahead[long] - ahead[middle], 0.0),
        ]
    return tests


def best_at_any_budget(evidence: Evidence) -> Tests:
    tests: Tests = []
    for backbone in evidence.backbones():
        kinds = [
            [arm for arm in evidence.arms if (arm.mixer, arm.backbone) == (kind, backbone)]
            for kind in ("linear", "softmax")
        ]
        if not all(kinds):
            raise MissingEvidenceError(f"needs softmax and linear in the backbone {backbone}")
        for budget in _common("flops", [arm for kind in kinds for arm in kind]):
            linear, softmax = (
                np.min([evidence.best_at(arm, "flops", budget) for arm in kind], axis=0) for kind in kinds
            )
            tests.append((f"{backbone}, {budget:.2g} FLOPs: linear - softmax", linear - softmax, 0.0))
    return tests


def balance(evidence: Evidence) -> Tests:
    balanced = min(evidence.arms, key=lambda arm: abs(np.log(arm.weight_state_ratio)))
    others = [arm for arm in evidence.arms if arm is not balanced]
    if len(others) < 2:
        raise MissingEvidenceError("needs three arms that differ in their weight:state ratio")
    best = evidence.best(balanced)
    return [(f"{other.name} - {balanced.name}", evidence.best(other) - best, 0.0) for other in others]


def linear_beats_window(evidence: Evidence) -> Tests:
    return [
        (
            f"{backbone}, {context:,}, {end:g} of the budget: window - linear",
            _between(evidence, "window", "linear", end, context=context, backbone=backbone),
            0.0,
        )
        for backbone in evidence.backbones()
        for context in evidence.contexts()
        for end in ENDS
    ]


def window_stops(evidence: Evidence) -> Tests:
    window, linear = evidence.pick("window"), evidence.pick("linear")
    early = octave_of(100, linear.context)
    gain, lost = evidence.gain(linear, early), evidence.gain(window, early)
    return [
        (f"window's gain past {early}, negated", -lost, -NO_GAIN),
        (f"gain past {early}: linear - window", gain - lost, 0.0),
        ("linear's gain from the last octave but one to the last", evidence.gain(linear, linear.context // 2), 0.0),
    ]


def steeper(evidence: Evidence) -> Tests:
    power, window = evidence.pick("power"), evidence.pick("window")
    early = octave_of(power.context // 32, power.context)
    return [
        (
            f"gain past {early} at {end:g} of the budget: power - window",
            evidence.gain(power, early, end) - evidence.gain(window, early, end),
            0.0,
        )
        for end in ENDS
    ]


def axes(evidence: Evidence) -> Tests:
    base, batch, parameters, context = (_named(evidence, name) for name in ("base", "batch", "parameters", "context"))
    late = base.context
    early = octave_of(late // 32, late)
    gain = {arm.name: evidence.gain(arm, early, late=late) for arm in (base, batch, parameters, context)}
    sooner = evidence.gain(base, early, evidence.end / 2, late=late)
    more = {name: gain[name] - gain["base"] for name in ("batch", "parameters", "context")}
    return [
        (f"updates: gain past {early} at the end - at half of it", gain["base"] - sooner, 0.0),
        (f"documents per update: gain past {early}, more - base", more["batch"], 0.0),
        (f"parameters: gain past {early}, more - base", more["parameters"], 0.0),
        (f"context: gain past {early}, more - base", more["context"], 0.0),
        ("tokens per update alone (cut documents) less half of what context brings",
         more["batch"] - 0.5 * more["context"], 0.0),
    ]  # fmt: skip


def dominates(unit: Spent) -> Callable[[Evidence], Tests]:
    def tests(evidence: Evidence) -> Tests:
        power, softmax = evidence.pick("power"), evidence.pick("softmax")
        rivals = [evidence.pick("linear"), softmax, *(arm for arm in evidence.arms if arm.mixer == "rwkv7")]
        return [
            (f"{budget:.3g} {unit}: {rival.mixer} - power",
             evidence.best_at(rival, unit, budget) - evidence.best_at(power, unit, budget), 0.0)
            for budget in _common(unit, [power, *rivals])
            for rival in rivals
        ]  # fmt: skip

    return tests


def _common(unit: Spent, arms: Sequence[ArmRuns]) -> list[float]:
    """Three budgets, equally spaced in their logarithm, over the range that all arms were measured in."""
    low, high = max(arm.range(unit)[0] for arm in arms), min(arm.range(unit)[1] for arm in arms)
    if low >= high:
        raise MissingEvidenceError(
            f"the arms share no range of {unit}: one ends at {high:.3g}, one starts at {low:.3g}"
        )
    return np.geomspace(low, high, len(ENDS)).tolist()


def long_curves(evidence: Evidence) -> Tests:
    early = octave_of(2000, min(evidence.contexts()))
    softmax, linear, power = (evidence.gain(evidence.pick(mixer), early) for mixer in ("softmax", "linear", "power"))
    return [
        (f"{LITTLE:g} of softmax's gain past {early:,} less linear's", LITTLE * softmax - linear, 0.0),
        (f"power's gain past {early:,} less {MOST:g} of softmax's", power - MOST * softmax, 0.0),
    ]


def equal_inference(evidence: Evidence) -> Tests:
    return [
        ("softmax - power", _between(evidence, "softmax", "power"), 0.0),
        ("window - softmax", _between(evidence, "window", "softmax"), -NOT_BETTER),
    ]


def _between(
    evidence: Evidence, first: str, second: str, end: float | None = None, *,
    context: int | None = None, backbone: str | None = None,
) -> np.ndarray:  # fmt: skip
    """Best-context loss of one mixer's arm less that of another's."""
    one, other = (evidence.best(evidence.pick(mixer, context, backbone), end) for mixer in (first, second))
    return one - other


def _named(evidence: Evidence, name: str) -> ArmRuns:
    found = [arm for arm in evidence.arms if arm.name == name]
    if not found:
        raise MissingEvidenceError(f"needs an arm called {name!r}")
    return found[0]


def octave_of(position: float, context: int) -> int:
    """The end of the octave that holds a position; in a context too short for it, of the fourth octave from the end."""
    end = 2 ** int(np.ceil(np.log2(max(position, 4))))
    return end if end <= context // 4 else max(context // 8, 4)


def ratios() -> list[Contrast]:
    off = {
        f"{name}, {context:,}": abs(np.log2(wsfr(mixer, context, causal=False).weight_state_ratio / published))
        for name, mixer in WSFR_MIXERS.items()
        for context, published in zip(WSFR_CONTEXTS, PAPER_WSFR[name], strict=True)
    }
    return [_exact(f"{name}: octaves from the paper's figure, negated", -value, -0.5) for name, value in off.items()]


def state_sizes() -> list[Contrast]:
    return [
        _exact(f"p={degree}, {kind}: rows that differ from the paper's, negated", -abs(ours - theirs), -0.5)
        for degree, published in PAPER_STATE.items()
        for kind, ours, theirs in zip(("tpow", "spow"), state_rows(degree), published, strict=True)
    ]


def throughput(kernels: KernelTimes) -> list[Contrast]:
    modes = ("forward", "forward + backward")
    speedups = [
        Contrast(f"{mode}, head {head_dim}: speed-up over softmax", kernels.speedup(65_536, head_dim, mode), bar)
        for head_dim, bar in SPEEDUPS.items()
        for mode in modes
    ]
    slopes = []
    for head_dim in SPEEDUPS:
        power = _slope(kernels, POWER, head_dim, at_least=65_536)
        softmax = _slope(kernels, kernels.softmax, head_dim, at_least=16_384)
        slopes += [
            _exact(
                f"head {head_dim}: change of power's log tokens/s per log context, size negated", -abs(power), -SLOPE
            ),
            _exact(f"head {head_dim}: distance of softmax's from -1, negated", -abs(softmax + 1), -SLOPE),
        ]
    return speedups + slopes


def _slope(kernels: KernelTimes, provider: str, head_dim: int, at_least: int) -> float:
    speeds = kernels.speeds(provider, head_dim, "forward + backward", at_least)
    return float(np.polyfit(np.log(speeds.index.to_numpy(float)), np.log(speeds.to_numpy()), 1)[0])


def chunk_optimum(kernels: KernelTimes) -> list[Contrast]:
    contrasts = []
    for head_dim in SPEEDUPS:
        total = kernels.total_by_chunk(head_dim)
        best = total.min()
        for chunk in (total.index[0], total.index[-1]):
            name = f"head {head_dim}: time with chunks of {chunk} over that of the best chunk ({total.idxmin()})"
            contrasts.append(_exact(name, total[chunk] / best, 1 + INTERIOR))
    return contrasts


def _exact(name: str, value: float, margin: float) -> Contrast:
    return Contrast(name, Estimate(*(np.asarray(value),) * 3), margin)
