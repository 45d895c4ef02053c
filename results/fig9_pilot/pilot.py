"""Small runs that decided how the central pair is run: on which documents, and how training starts."""

from functools import partial

from icl_eval import Arm, Budget, Experiment
from icl_eval.experiments.arms import LEAN, text_arm
from icl_eval.models import Power, Softmax


def experiment() -> Experiment:
    arm = partial(
        text_arm,
        scale="h200",
        context=65_536,
        tokens_per_step=65_536,
        rolled_windows=2,
        branches=(1.0,),
        start_context=2048,
    )
    softmax = partial(arm, mixer=Softmax(), size=LEAN, budget=Budget(flops=2e16))
    power = partial(arm, size=LEAN._replace(num_heads=2 * LEAN.num_heads), budget=Budget(flops=5e15))
    arms: tuple[Arm, ...] = (
        softmax("softmax-16M", start_tokens=16_000_000),
        softmax("softmax-60M", start_tokens=60_000_000),
        softmax("softmax-16M-by-8", start_tokens=16_000_000, start_batch_size=8),
        softmax("softmax-16M-by-4", start_tokens=16_000_000, start_batch_size=4),
        power("power-rows", mixer=Power(), start_tokens=16_000_000),
        power("power-none", mixer=Power(normalization="none"), start_tokens=16_000_000),
    )
    return Experiment(
        name="pilot",
        question="Which documents make context worth something, and how should training start?",
        arms=arms,
        eval_sequences=96,
        eval_batch_size=1,
        snapshots=1,
    )
