"""C12, C13: linear, softmax and p=2 at 65,536 tokens, per FLOP and per second: the central result (figure 9)."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import MICRO, SMALL, TINY, check_scale, text_arm
from icl_eval.models import Linear, Power, Softmax


def experiment(scale: str = "smoke") -> Experiment:
    """Equal FLOPs, one long sequence an update at the reduced scale: more updates of fewer tokens."""
    size, context, tokens_per_step, flops = {
        "smoke": (TINY, 64, 128, 4e7),
        "h200": (MICRO, 65_536, 65_536, 3e16),
        "paper": (SMALL, 65_536, 32 * 65_536, 3e20),
    }[check_scale(scale)]
    arm = partial(
        text_arm, scale=scale, size=size, context=context, tokens_per_step=tokens_per_step, budget=Budget(flops=flops)
    )
    return Experiment(
        name=f"fig9_long_context-{scale}",
        question="At a long context, does power attention dominate per FLOP, and per second?",
        arms=tuple(arm(mixer.name, mixer) for mixer in (Linear(), Softmax(), Power())),
        eval_sequences=64 if scale == "smoke" else 96,
        eval_batch_size=16 if scale == "smoke" else 1,
    )
