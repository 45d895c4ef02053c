"""C14: a window, a short context and p=2 at equal parameters, state, tokens per update and FLOPs (table 4)."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import MICRO, SMALL, TINY, check_scale, text_arm
from icl_eval.models import Power, Softmax, Window


def experiment(scale: str = "smoke") -> Experiment:
    """With heads of 64, 1,024 tokens of keys and values are as many numbers as the state of p=2 (to 3 %).

    At ``h200`` the window and p=2 are the runs of ``fig7_balanced_icl``, setting by setting."""
    size, short, long, tokens_per_step, flops = {
        "smoke": (TINY, 16, 64, 128, 4e7),
        "h200": (MICRO, 1024, 4096, 32_768, 1.6e16),
        "paper": (SMALL, 1024, 4096, 131_072, 1e19),
    }[check_scale(scale)]
    arm = partial(text_arm, scale=scale, size=size, tokens_per_step=tokens_per_step, budget=Budget(flops=flops))
    return Experiment(
        name=f"table4_equal_inference-{scale}",
        question="At equal cost of inference, does anything beat softmax attention at a short context?",
        arms=tuple(
            arm(mixer.name, mixer, context=context)
            for mixer, context in ((Window(window=short), long), (Softmax(), short), (Power(), long))
        ),
        eval_sequences=64 if scale == "smoke" else 4096,
        eval_batch_size=16,
    )
