"""C12, C13: linear, softmax and p=2 at 65,536 tokens, per FLOP and per second: the central result (figure 9)."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import MICRO, SMALL, TINY, check_scale, text_arm
from icl_eval.models import Linear, Power, Softmax


def experiment(scale: str = "smoke") -> Experiment:
    """Equal FLOPs, one long sequence an update at the reduced scale: more updates of fewer tokens.

    There softmax could pay for 470 updates at the full context, too few to learn anything in context. So all arms read
    their first 16 M tokens in sequences of 2,048, which costs softmax a twentieth of its budget and adds half as many
    updates; every branch begins after it.
    """
    size, context, tokens_per_step, flops, start = {
        "smoke": (TINY, 64, 128, 8e7, (16, 128)),
        "h200": (MICRO, 65_536, 65_536, 3e16, (2048, 16_000_000)),
        "paper": (SMALL, 65_536, 32 * 65_536, 3e20, (None, 0)),
    }[check_scale(scale)]
    arm = partial(
        text_arm,
        scale=scale,
        size=size,
        context=context,
        tokens_per_step=tokens_per_step,
        budget=Budget(flops=flops),
        start_context=start[0],
        start_tokens=start[1],
    )
    return Experiment(
        name=f"fig9_long_context-{scale}",
        question="At a long context, does power attention dominate per FLOP, and per second?",
        arms=tuple(arm(mixer.name, mixer) for mixer in (Linear(), Softmax(), Power())),
        eval_sequences=64 if scale == "smoke" else 96,
        eval_batch_size=16 if scale == "smoke" else 1,
    )
