"""C10: a window and p=2, both balanced: whose in-context learning curve is steeper (the paper's figure 7)?"""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import LARGE, MICRO, TINY, check_scale, text_arm
from icl_eval.models import Power, Window


def experiment(scale: str = "smoke") -> Experiment:
    """RWKV with a window of a quarter of the context, and with p=2, whose state is about as large with heads of 64."""
    size, context, tokens_per_step, flops = {
        "smoke": (TINY, 64, 128, 4e7),
        "h200": (MICRO, 4096, 32_768, 1.6e16),
        "paper": (LARGE, 4096, 131_072, 1e20),
    }[check_scale(scale)]
    arm = partial(
        text_arm, scale=scale, size=size, context=context, tokens_per_step=tokens_per_step, budget=Budget(flops=flops)
    )
    return Experiment(
        name=f"fig7_balanced_icl-{scale}",
        question="Of two balanced models, does p=2 learn more in context than a window?",
        arms=tuple(arm(mixer.name, mixer) for mixer in (Window(window=context // 4), Power())),
        eval_sequences=64 if scale == "smoke" else 4096,
        eval_batch_size=16,
    )
