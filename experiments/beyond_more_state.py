"""Beyond the paper: the central pair's power attention with heads twice as wide, which hold four times the state."""

from dataclasses import replace

from icl_eval import Experiment
from icl_eval.experiments import fig9_long_context


def experiment(scale: str = "smoke") -> Experiment:
    """The power arm of ``fig9_long_context`` as it is there, and with half as many heads, twice as wide.

    At the reduced scale these are softmax's heads of 64, and state then costs as many FLOPs as weights. Softmax and
    linear attention are there already: ``icl-eval compare`` takes runs of both presets.
    """
    central = fig9_long_context.experiment(scale)
    power = next(arm for arm in central.arms if arm.name == "power")
    (mixer,) = power.model.mixers
    model = replace(power.model, mixers=(replace(mixer, num_heads=mixer.num_heads // 2),))
    return replace(
        central,
        name=f"beyond_more_state-{scale}",
        question="Is four times the state worth its FLOPs to power attention at a long context?",
        arms=(power, replace(power, name="power-wide", model=model)),
    )
