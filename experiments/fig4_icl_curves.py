"""C7: in-context learning curves of a short window and of linear attention through training (the paper's figure 4)."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import MICRO, SMALL, TINY, check_scale, equal_state_window, text_arm
from icl_eval.models import Linear, Window


def experiment(scale: str = "smoke") -> Experiment:
    """RWKV with a window and with linear attention of equal state."""
    size, context, tokens_per_step, flops = {
        "smoke": (TINY, 64, 128, 4e7),
        "h200": (MICRO, 1024, 32_768, 8e15),
        "paper": (SMALL, 1024, 32_768, 2e18),
    }[check_scale(scale)]
    arm = partial(
        text_arm, scale=scale, size=size, context=context, tokens_per_step=tokens_per_step, budget=Budget(flops=flops)
    )
    return Experiment(
        name=f"fig4_icl_curves-{scale}",
        question="Up to which position do a short window and a recurrent state of its size learn in context?",
        arms=tuple(arm(mixer.name, mixer) for mixer in (Window(window=equal_state_window(size)), Linear())),
        eval_sequences=64 if scale == "smoke" else 8192,
        eval_batch_size=16 if scale == "smoke" else 32,
    )
