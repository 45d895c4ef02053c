"""Beyond the paper: the central comparison at its whole budget, with a longer start on short pieces, and more state."""

from dataclasses import replace

from icl_eval import Arm, Experiment
from icl_eval.experiments import fig9_long_context


def experiment(scale: str = "smoke") -> Experiment:
    """The arms of ``fig9_long_context``, four times as many tokens on short pieces, and power with softmax's heads.

    At the reduced scale softmax then reads 89 M tokens in place of 45 M. A branch at a quarter of its budget would
    begin before it sees the full context, so only the whole budget is measured. Power's heads of 64 hold four times the
    state of its heads of 32, and cost as many FLOPs on state as on weights.
    """
    central = fig9_long_context.experiment(scale)
    arms = {arm.name: _started_long(arm) for arm in central.arms}
    (mixer,), heads = arms["power"].model.mixers, arms["softmax"].model.mixers[0].num_heads
    if mixer.num_heads != heads:
        model = replace(arms["power"].model, mixers=(replace(mixer, num_heads=heads),))
        arms["power-wide"] = replace(arms["power"], name="power-wide", model=model)
    return replace(
        central,
        name=f"beyond_long_start-{scale}",
        question="Does the order at a long context change with a longer start on short pieces, or with more state?",
        arms=tuple(arms.values()),
    )


def _started_long(arm: Arm) -> Arm:
    training = arm.training
    return replace(arm, training=replace(training, branches=(1.0,), start_tokens=4 * training.start_tokens))
