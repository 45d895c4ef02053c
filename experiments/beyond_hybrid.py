"""Beyond the paper: power attention with a few softmax or window layers."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import MICRO, SMALL, TINY, check_scale, text_arm
from icl_eval.models import MixerConfig, Power, Softmax, Window


def experiment(scale: str = "smoke") -> Experiment:
    """Patterns of three layers, repeated, beside their parts."""
    size, context, tokens_per_step, flops = {
        "smoke": (TINY, 32, 128, 4e7),
        "h200": (MICRO, 16_384, 32_768, 1.6e16),
        "paper": (SMALL, 65_536, 32 * 65_536, 3e20),
    }[check_scale(scale)]
    window = Window(window=min(512, context // 2))
    patterns: dict[str, tuple[MixerConfig, ...]] = {
        "softmax": (Softmax(),),
        "power": (Power(),),
        "power-power-softmax": (Power(), Power(), Softmax()),
        "power-power-window": (Power(), Power(), window),
        "window-window-power": (window, window, Power()),
    }
    arm = partial(
        text_arm, scale=scale, size=size, context=context, tokens_per_step=tokens_per_step, budget=Budget(flops=flops)
    )
    return Experiment(
        name=f"beyond_hybrid-{scale}",
        question="Does a power model gain from a few layers of another kind?",
        arms=tuple(arm(name, pattern) for name, pattern in patterns.items()),
        eval_sequences=64 if scale == "smoke" else 512,
        eval_batch_size=16 if scale == "smoke" else 4,
    )
