"""Four attention types at matched compute, on recall and on long documents, in five minutes on two CPU cores."""

from icl_eval import Arm, Budget, Experiment, Training
from icl_eval.models import Linear, MixerConfig, ModelConfig, Power, Softmax, Transformer, Window
from icl_eval.tasks import MQAR, SourceCode, Task


def mixers(width: int, num_heads: int, rotary_base: float | None, longest_memory: float) -> dict[str, MixerConfig]:
    """The four arms at one geometry. The window's state is equal to power's, up to less than one token."""
    softmax = Softmax(width=width, num_heads=num_heads, rotary_base=rotary_base)
    memory = (longest_memory / 16, longest_memory)
    power = Power(width=width, num_heads=num_heads, rotary_base=rotary_base, gate_timescale_tokens=memory)
    linear = Linear(width=width, num_heads=num_heads, rotary_base=rotary_base, gate_timescale_tokens=memory)
    tokens = power.state_size(1).mathematical // softmax.state_size(1).mathematical
    window = Window(width=width, num_heads=num_heads, rotary_base=rotary_base, window=tokens)
    return {"exponential": softmax, "window": window, "linear": linear, "power": power}


def arms(
    task: Task, layers: dict[str, MixerConfig], backbone: Transformer, training: Training, budget: Budget
) -> list[Arm]:
    """One arm a mixer; all else is the same."""
    return [
        Arm(
            name=f"{task.name}-{name}",
            task=task,
            model=ModelConfig(vocab_size=task.num_tokens, num_layers=2, mixers=(mixer,), backbone=backbone),
            training=training,
            budget=budget,
        )
        for name, mixer in layers.items()
    ]


def experiment() -> Experiment:
    """Recall of 32 pairs, which needs state; and bytes of Python source, which at this scale hardly need any."""
    recall = arms(
        MQAR(seq_len=192, vocab_size=128, num_pairs=32, random_filler=False),
        mixers(width=32, num_heads=2, rotary_base=None, longest_memory=8192.0),
        Transformer(mlp_ratio=2.0, short_conv=4),
        Training(batch_size=16, learning_rate=5e-3, final_learning_rate=5e-4, warmup_tokens=100_000, betas=(0.9, 0.95)),
        Budget(flops=1e12),
    )
    text = arms(
        SourceCode(seq_len=512),
        mixers(width=64, num_heads=4, rotary_base=10_000.0, longest_memory=1024.0),
        Transformer(mlp_ratio=2.0, short_conv=4),
        Training(batch_size=4, learning_rate=5e-3, final_learning_rate=5e-4, warmup_tokens=100_000, betas=(0.9, 0.95)),
        Budget(flops=5e11),
    )
    return Experiment(
        name="quickstart",
        question="At equal training FLOPs, what does the state of an attention type buy, on recall and on long text?",
        arms=(*recall, *text),
        eval_sequences=128,
        eval_batch_size=32,
    )
