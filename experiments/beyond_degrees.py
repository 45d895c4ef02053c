"""Beyond the paper: degrees 1 to 4, odd ones included, with heads small enough for all of them."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import TINY, check_scale, text_arm
from icl_eval.models import Linear, Power, Softmax
from icl_eval.models.sizes import Size


def experiment(scale: str = "smoke") -> Experiment:
    """Heads of 16; odd degrees go without a row sum, and with an output norm in its place."""
    size, context, tokens_per_step, flops = {
        "smoke": (TINY, 32, 128, 4e7),
        "h200": (Size(384, 6, 24), 4096, 32_768, 1.2e16),
        "paper": (Size(768, 12, 48), 65_536, 32 * 65_536, 3e20),
    }[check_scale(scale)]
    mixers = {
        "softmax": Softmax(),
        "p1": Linear(),
        "p2": Power(degree=2),
        "p2-output-norm": Power(degree=2, normalization="none"),
        "p3-output-norm": Power(degree=3, normalization="none"),
        "p4": Power(degree=4),
    }
    arm = partial(
        text_arm, scale=scale, size=size, context=context, tokens_per_step=tokens_per_step, budget=Budget(flops=flops)
    )
    return Experiment(
        name=f"beyond_degrees-{scale}",
        question="Which degree is best at equal FLOPs, and do odd degrees work?",
        arms=tuple(arm(name, mixer) for name, mixer in mixers.items()),
        eval_sequences=64 if scale == "smoke" else 1024,
        eval_batch_size=16,
    )
