"""C1, C2: what a growing state buys, per update and per FLOP, at three contexts in two backbones (figure 1)."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import NARROW, SMALL, TINY, check_scale, text_arm
from icl_eval.models import RWKV, Linear, Softmax, Transformer


def experiment(scale: str = "smoke") -> Experiment:
    """Softmax and linear arms see equal tokens; heads of 64 make their states equal at context 32.

    The first branch ends early enough for ranges of FLOPs to overlap where tokens are equal.
    """
    size, contexts, tokens_per_step, tokens = {
        "smoke": (TINY, (8, 32, 64), 64, 64 * 8),
        "h200": (NARROW, (32, 1024, 8192), 32_768, 32_768 * 2000),
        "paper": (SMALL, (32, 1024, 8192), 32_768, 32_768 * 100_000),
    }[check_scale(scale)]
    arm = partial(
        text_arm,
        scale=scale,
        size=size,
        tokens_per_step=tokens_per_step,
        budget=Budget(tokens=tokens),
        branches=(0.125, 0.25, 0.5, 1.0),
    )
    return Experiment(
        name=f"fig1_state_helps-{scale}",
        question="Does a state that grows with the context pay, per update and per FLOP?",
        arms=tuple(
            arm(f"{backbone.__name__.lower()}-{mixer.name}-{context}", mixer(), context=context, backbone=backbone())
            for backbone in (RWKV, Transformer)
            for context in contexts
            for mixer in (Softmax, Linear)
        ),
        eval_sequences=64 if scale == "smoke" else 4096,
        eval_batch_size=16 if scale == "smoke" else 32,
    )
