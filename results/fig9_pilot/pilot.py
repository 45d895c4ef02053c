from dataclasses import replace
from functools import partial
from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import LEAN, text_arm
from icl_eval.models import Linear, Power, Softmax
HALF = LEAN._replace(num_heads=2 * LEAN.num_heads)
arm = partial(text_arm, scale="h200", context=65_536, tokens_per_step=65_536, rolled_windows=2, branches=(1.0,), start_context=2048)
def experiment():
    return Experiment(
        name="pilot", question="?",
        arms=(
            arm("softmax-16M", Softmax(), size=LEAN, budget=Budget(flops=2e16), start_tokens=16_000_000),
            arm("softmax-60M", Softmax(), size=LEAN, budget=Budget(flops=2e16), start_tokens=60_000_000),
            arm("power-rows", Power(), size=HALF, budget=Budget(flops=5e15), start_tokens=16_000_000),
            arm("power-none", Power(normalization="none"), size=HALF, budget=Budget(flops=5e15), start_tokens=16_000_000),
        ),
        eval_sequences=96, eval_batch_size=1, snapshots=1,
    )
