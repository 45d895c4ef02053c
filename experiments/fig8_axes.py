"""C11: p=2 over updates, documents per update, parameters and context (the paper's figure 8)."""

from icl_eval import Budget, Experiment
from icl_eval.experiments.arms import LARGE, MICRO, NARROW, SMALL, TINY, check_scale, text_arm
from icl_eval.models import Power
from icl_eval.models.sizes import Size


def experiment(scale: str = "smoke") -> Experiment:
    """Equal updates; ``batch`` cuts long documents to base's context, with ``context``'s tokens: the grey control."""
    small, large, context, documents, updates = {
        "smoke": (TINY, Size(width=32, num_layers=1, num_heads=2), 32, 2, 8),
        "h200": (NARROW, MICRO, 1024, 8, 3000),
        "paper": (SMALL, LARGE, 1024, 32, 100_000),
    }[check_scale(scale)]
    shapes = {
        "base": (small, context, documents),
        "batch": (small, context, 4 * documents),
        "parameters": (large, context, documents),
        "context": (small, 4 * context, documents),
    }
    return Experiment(
        name=f"fig8_axes-{scale}",
        question="Along which axes does p=2 learn more in context?",
        arms=tuple(
            text_arm(
                name,
                Power(),
                scale=scale,
                size=size,
                context=length,
                tokens_per_step=length * batch,
                budget=Budget(tokens=updates * length * batch),
            )
            for name, (size, length, batch) in shapes.items()
        ),
        eval_sequences=64 if scale == "smoke" else 2048,
        eval_batch_size=16,
    )
