"""What the paper's presets share: three scales, one way to build an arm, and training settings a scale.

``smoke`` shows on a CPU that a preset runs; ``h200`` is the reduced scale on one H200; ``paper`` is the paper's.
"""

from dataclasses import replace

from icl_eval import Arm, Budget, Training
from icl_eval.config import lookup
from icl_eval.models import RWKV, Backbone, MixerConfig, ModelConfig, Power, rotary_base
from icl_eval.models.sizes import SIZES, Size
from icl_eval.studies import SCALES
from icl_eval.tasks import SourceCode

TINY = Size(width=16, num_layers=1, num_heads=2)
"""Of every smoke arm."""
NARROW = Size(width=192, num_layers=6, num_heads=3)
"""Nano's width with heads of 64, where the ratio of the states is to be the paper's."""
LEAN = Size(width=384, num_layers=4, num_heads=6)
"""Micro with fewer layers: small enough to see tens of tokens a parameter at a long context, as the paper's models did
hundreds."""
MICRO, SMALL, MEDIUM, LARGE = (SIZES[name] for name in ("micro", "small", "medium", "large"))

TRAINING = {
    "smoke": Training(learning_rate=1e-2, final_learning_rate=1e-3, warmup_tokens=256, schedule="branched"),
    "h200": Training(
        learning_rate=2e-3, final_learning_rate=2e-5, warmup_tokens=8_000_000, betas=(0.9, 0.95), schedule="branched"
    ),
    "paper": Training(schedule="branched"),
}
"""The paper's settings but for decay branches in place of a cosine, whose points are not finished runs."""


def check_scale(scale: str) -> str:
    """The scale, if it is one.

    Raises:
        ValueError: it is not.
    """
    return lookup({name: name for name in SCALES}, scale, "scale")


def text_arm(
    name: str,
    mixer: MixerConfig | tuple[MixerConfig, ...],
    *,
    scale: str,
    size: Size,
    context: int,
    tokens_per_step: int,
    budget: Budget,
    backbone: Backbone | None = None,
    branches: tuple[float, ...] = (0.25, 0.5, 1.0),
    start_context: int | None = None,
    start_tokens: int = 0,
    start_batch_size: int | None = None,
    rolled_windows: int | None = None,
) -> Arm:
    """An arm on source code, which ``--text`` swaps for other documents.

    Heads of power and linear attention start with memories from 16 tokens to the context.

    Args:
        name: of the arm.
        mixer: its width, heads and rotary base are set here; several make a hybrid, repeated in that order.
        scale: for the training settings.
        size: of the model.
        context: tokens a sequence.
        tokens_per_step: tokens an update, a multiple of the context.
        budget: of training.
        backbone: RWKV if not given.
        branches: shares of the budget at which decay branches end.
        start_context, start_tokens, start_batch_size: of the first tokens of training, as in
            :class:`icl_eval.Training`.
        rolled_windows: of each held-out document, as in :class:`icl_eval.tasks.TextTask`.
    """
    mixers = mixer if isinstance(mixer, tuple) else (mixer,)
    task = SourceCode(seq_len=context, rolled_windows=rolled_windows)
    model = ModelConfig(
        vocab_size=task.num_tokens,
        num_layers=max(size.num_layers, len(mixers)),
        mixers=tuple(_sized(one, size, context) for one in mixers),
        backbone=backbone or RWKV(),
    )
    training = replace(
        TRAINING[scale],
        batch_size=max(tokens_per_step // context, 1),
        branches=branches,
        start_context=start_context,
        start_tokens=start_tokens,
        start_batch_size=start_batch_size,
        compile=scale != "smoke",
    )
    return Arm(name=name, task=task, model=model, training=training, budget=budget)


def _sized(mixer: MixerConfig, size: Size, context: int) -> MixerConfig:
    sized = replace(mixer, width=size.width, num_heads=size.num_heads, rotary_base=rotary_base(context))
    if isinstance(sized, Power):
        sized = replace(sized, gate_timescale_tokens=(min(16.0, context), float(context)))
    return sized


def equal_state_window(size: Size) -> int:
    """Tokens of a window whose keys and values are as many numbers as linear attention's state."""
    return size.width // size.num_heads // 2
