"""C12, C13: linear, softmax and p=2 at 65,536 tokens, per FLOP and per second: the central result (figure 9)."""

from functools import partial

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import LEAN, SMALL, TINY, check_scale, text_arm
from icl_eval.models import Linear, Power, Softmax


def experiment(scale: str = "smoke") -> Experiment:
    """Equal FLOPs, one long sequence an update at the reduced scale: more updates of fewer tokens.

    There softmax could pay for 472 updates at the full context, too few to learn much in context. So all arms read
    their first 16 M tokens in sequences of 2,048, eight an update, which costs softmax a twentieth of its budget and
    gives it three times as many updates; every branch begins after it. Power has twice as many heads, half as wide: at
    this width its state would otherwise cost as much as all weights, where in the paper's models it costs half as much.
    Held-out documents are few and long, so each is read in 24 rolled windows: then early and late positions read the
    same text.
    """
    size, power_heads, context, tokens_per_step, flops, start = {
        "smoke": (TINY, TINY.num_heads, 64, 128, 8e7, (16, 128, 4)),
        "h200": (LEAN, 2 * LEAN.num_heads, 65_536, 65_536, 2e16, (2048, 16_000_000, 8)),
        "paper": (SMALL, SMALL.num_heads, 65_536, 32 * 65_536, 3e20, (None, 0, None)),
    }[check_scale(scale)]
    arm = partial(
        text_arm,
        scale=scale,
        context=context,
        tokens_per_step=tokens_per_step,
        budget=Budget(flops=flops),
        start_context=start[0],
        start_tokens=start[1],
        start_batch_size=start[2],
        rolled_windows=None if scale == "smoke" else 24,
    )
    return Experiment(
        name=f"fig9_long_context-{scale}",
        question="At a long context, does power attention dominate per FLOP, and per second?",
        arms=(
            arm("linear", Linear(), size=size),
            arm("softmax", Softmax(), size=size),
            arm("power", Power(), size=size._replace(num_heads=power_heads)),
        ),
        eval_sequences=64 if scale == "smoke" else 216,
        eval_batch_size=16 if scale == "smoke" else 1,
    )
