"""Beyond the paper: models trained at two contexts, to be measured far past them."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import MICRO, SMALL, TINY, check_scale, text_arm
from icl_eval.models import Linear, Power, Softmax, Window


def experiment(scale: str = "smoke") -> Experiment:
    """Trains and measures at both contexts; ``icl-eval measure`` takes the finished runs to 262,144 tokens."""
    size, contexts, tokens_per_step, flops = {
        "smoke": (TINY, (16, 32), 128, 2e7),
        "h200": (MICRO, (4096, 16_384), 32_768, 1.2e16),
        "paper": (SMALL, (4096, 16_384), 32 * 65_536, 1e20),
    }[check_scale(scale)]
    arm = partial(text_arm, scale=scale, size=size, tokens_per_step=tokens_per_step, budget=Budget(flops=flops))
    return Experiment(
        name=f"beyond_extrapolation-{scale}",
        question="How far past the context that they were trained at do models go on learning in context?",
        arms=tuple(
            arm(f"{mixer.name}-{context}", mixer, context=context)
            for context in contexts
            for mixer in (Softmax(), Window(window=contexts[0] // 4), Linear(), Power())
        ),
        eval_sequences=64 if scale == "smoke" else 512,
        eval_batch_size=16 if scale == "smoke" else 4,
    )
