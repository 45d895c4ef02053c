"""How long an experiment will take on one H200, from the training throughput measured there."""

from icl_eval.budget import BACKWARD_FACTOR
from icl_eval.experiment import Arm, Experiment
from icl_eval.schedule import make_plan

WEIGHT_RATE, FULL_WIDTH = 3.4e14, 768
STATE_RATES, FULL_HEAD = {"softmax": 3.8e14, "power": 2.4e14, "linear": 3.5e13, "window": 2.3e14}, 64
MIN_STEP_SECONDS = 1.1e-3
ASSUMPTION = (
    f"one H200 to itself, steps compiled and recorded; {WEIGHT_RATE / 1e12:.0f} TFLOP/s on weights at width "
    f"{FULL_WIDTH}; on states "
    + ", ".join(f"{name} {rate / 1e12:.0f}" for name, rate in STATE_RATES.items())
    + f" at heads of {FULL_HEAD}; in proportion less below (results/training); "
    f"{1e3 * MIN_STEP_SECONDS:.1f} ms a step at least; compiling and measuring not counted"
)
"""Rates are those of the 124 M model in training; narrow models and heads are bound by memory, so theirs are lower, in
proportion to width by the steps of the h200 presets. The smallest steps of ``state_frontier`` took 1.0 to 1.5 ms each
of a card that fourteen processes kept busy."""


def minutes(arm: Arm, snapshots: int = 1) -> float:
    """Minutes of training of one seed, decay branches included; a budget in seconds is taken as it is."""
    if arm.budget.seconds is not None:
        return arm.budget.seconds / 60
    legs = make_plan(arm, arm.schedule().steps, snapshots).legs
    steps = sum(leg.stop - leg.start for leg in legs)
    short = sum(min(leg.stop, arm.start_steps) - min(leg.start, arm.start_steps) for leg in legs)
    at_start = arm.start_tokens_per_step * _seconds_per_token(arm, arm.training.start_context or 1)
    later = arm.tokens_per_step * _seconds_per_token(arm, arm.task.seq_len)
    return (short * max(at_start, MIN_STEP_SECONDS) + (steps - short) * max(later, MIN_STEP_SECONDS)) / 60


def _seconds_per_token(arm: Arm, context: int) -> float:
    flops = arm.model.flops_per_token(context)
    by_layer = [arm.model.backbone.flops_per_token(mixer, context) for mixer in arm.model.layers]
    state = sum(
        layer.state / (STATE_RATES.get(mixer.name, STATE_RATES["linear"]) * min(1.0, mixer.head_dim / FULL_HEAD))
        for mixer, layer in zip(arm.model.layers, by_layer, strict=True)
    )
    weight = flops.weight / (WEIGHT_RATE * min(1.0, arm.model.width / FULL_WIDTH))
    return BACKWARD_FACTOR * (weight + state)


def total_minutes(experiment: Experiment) -> float:
    """Minutes of all arms, one seed."""
    return sum(minutes(arm, experiment.snapshots) for arm in experiment.arms)
