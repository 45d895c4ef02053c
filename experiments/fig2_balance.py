"""C3: of softmax models of equal FLOPs, is the one that balances weights and state the best (the paper's figure 2)?"""

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import MEDIUM, TINY, check_scale, text_arm
from icl_eval.models import Softmax
from icl_eval.models.sizes import Size


def experiment(scale: str = "smoke") -> Experiment:
    """Three softmax models with about equal FLOPs a token, and weight:state FLOPs of about 1:12, 4:1 and 99:1."""
    shapes, tokens_per_step, flops = {
        "smoke": (((TINY, 64), (TINY, 16), (TINY, 8)), 64, 2e7),
        "h200": (((Size(192, 6, 3), 32_768), (Size(512, 8, 8), 2048), (Size(640, 7, 10), 64)), 65_536, 1.5e16),
        "paper": (((Size(512, 8, 8), 65_536), (MEDIUM, 4096), (Size(1280, 26, 20), 64)), 2_097_152, 1e20),
    }[check_scale(scale)]
    return Experiment(
        name=f"fig2_balance-{scale}",
        question="At equal FLOPs, does it pay to balance the FLOPs on weights and on state?",
        arms=tuple(
            text_arm(
                f"context-{context}",
                Softmax(),
                scale=scale,
                size=size,
                context=context,
                tokens_per_step=tokens_per_step,
                budget=Budget(flops=flops),
            )
            for size, context in shapes
        ),
        eval_sequences=64 if scale == "smoke" else 4096,
        eval_batch_size=16 if scale == "smoke" else 2,
    )
