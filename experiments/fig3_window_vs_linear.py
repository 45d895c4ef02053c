"""C6: a window and linear attention with equal state, at two contexts in two backbones (the paper's figure 3)."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import NARROW, SMALL, TINY, check_scale, equal_state_window, text_arm
from icl_eval.models import RWKV, Linear, Transformer, Window


def experiment(scale: str = "smoke") -> Experiment:
    """Heads of 64 hold a linear state as large as a window of 32 tokens."""
    size, contexts, tokens_per_step, flops = {
        "smoke": (TINY, (32, 64), 64, 2e7),
        "h200": (NARROW, (1024, 8192), 32_768, 1.2e15),
        "paper": (SMALL, (1024, 8192), 32_768, 2e18),
    }[check_scale(scale)]
    arm = partial(text_arm, scale=scale, size=size, tokens_per_step=tokens_per_step, budget=Budget(flops=flops))
    return Experiment(
        name=f"fig3_window_vs_linear-{scale}",
        question="Of two states of equal size, does the recurrent one beat the window?",
        arms=tuple(
            arm(f"{backbone.__name__.lower()}-{mixer.name}-{context}", mixer, context=context, backbone=backbone())
            for backbone in (RWKV, Transformer)
            for context in contexts
            for mixer in (Window(window=equal_state_window(size)), Linear())
        ),
        eval_sequences=64 if scale == "smoke" else 2048,
        eval_batch_size=16 if scale == "smoke" else 32,
    )
