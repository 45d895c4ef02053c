"""What a state of some size buys: recall, counting and long text against state bytes, at matched compute."""

from dataclasses import replace
from typing import Literal, NamedTuple

from icl_eval import Arm, Budget, Experiment, Training
from icl_eval.config import lookup
from icl_eval.models import Linear, MixerConfig, ModelConfig, Power, Softmax, Transformer, Window
from icl_eval.tasks import MQAR, Markov, SourceCode, Task


class Sizes(NamedTuple):
    """The arms of one task: geometry, the states compared, and training.

    Attributes:
        task: what is learned.
        width, head_dim, num_layers: of every arm; power attention differs in the size of its heads.
        windows: tokens of the window arms.
        power_head_dims: sizes of the heads of the power arms.
        rotary_base: of the rotary embedding, without which recall is learned sooner.
        batch_size: sequences a step.
        learning_rate: at its peak; the last is a tenth.
        flops: training FLOPs of every arm.
        start_context, start_tokens, start_batch_size: of the first tokens, as in :class:`icl_eval.Training`.
    """

    task: Task
    width: int
    head_dim: int
    num_layers: int
    windows: tuple[int, ...]
    power_head_dims: tuple[int, ...]
    rotary_base: float | None
    batch_size: int
    learning_rate: float
    flops: float
    start_context: int | None = None
    start_tokens: int = 0
    start_batch_size: int | None = None


SCALES: dict[str, tuple[Sizes, ...]] = {
    "smoke": (
        Sizes(MQAR(seq_len=32, vocab_size=32, num_pairs=8, random_filler=False),
              32, 16, 2, (4, 8, 16), (8, 16), None, 32, 5e-3, 3e10),
        Sizes(MQAR(seq_len=32, vocab_size=32, num_pairs=6, num_rewrites=4, random_filler=False),
              32, 16, 2, (4, 8, 16), (8, 16), None, 32, 5e-3, 3e10),
        Sizes(Markov(seq_len=64, num_states=4), 32, 16, 2, (8, 32), (8, 16), None, 16, 5e-3, 1.5e10),
        Sizes(SourceCode(seq_len=128), 32, 16, 2, (16, 64), (8, 16), 10_000.0, 4, 5e-3, 5e9, 32, 1024, 8),
    ),
    "h200": (
        Sizes(MQAR(seq_len=256, vocab_size=256, num_pairs=64, random_filler=False),
              64, 32, 2, (16, 32, 64, 128), (8, 16, 32), None, 64, 3e-3, 1.2e13),
        Sizes(MQAR(seq_len=256, vocab_size=256, num_pairs=48, num_rewrites=32, random_filler=False),
              64, 32, 2, (16, 32, 64, 128), (8, 16, 32), None, 64, 3e-3, 1.6e13),
        Sizes(Markov(seq_len=1024, num_states=16), 64, 32, 2, (16, 64, 256), (8, 16, 32), None, 16, 3e-3, 1.2e13),
        Sizes(SourceCode(seq_len=16_384), 128, 32, 4, (64, 256, 1024), (16, 32, 64), 500_000.0, 2, 3e-3, 5e14,
              1024, 8_000_000, 8),
    ),
    "paper": (
        Sizes(MQAR(seq_len=512, vocab_size=8192, num_pairs=64, random_filler=False),
              128, 64, 2, (16, 32, 64, 128, 256), (8, 16, 32, 64), None, 256, 2e-3, 1e16),
        Sizes(MQAR(seq_len=512, vocab_size=8192, num_pairs=64, num_rewrites=64, random_filler=False),
              128, 64, 2, (16, 32, 64, 128, 256), (8, 16, 32, 64), None, 256, 2e-3, 1e16),
        Sizes(Markov(seq_len=4096, num_states=32), 128, 64, 2, (64, 256, 1024), (8, 16, 32, 64), None, 32, 2e-3, 3e15),
        Sizes(SourceCode(seq_len=16_384), 768, 64, 12, (128, 512, 2048), (32, 64), 500_000.0, 32, 6e-4, 1e19),
    ),
}  # fmt: skip


def experiment(scale: str = "smoke") -> Experiment:
    """Softmax, windows, linear and power attention of several states, three seeds beyond the smoke scale.

    At the reduced scale softmax could pay for 284 updates at the long text's context, so all arms read its first 8 M
    tokens in eight sequences of 1,024 an update, as those of ``fig9_long_context`` do.
    """
    sizes = lookup(SCALES, scale, "scale")
    return Experiment(
        name=f"state_frontier-{scale}",
        question="At equal training FLOPs, how do recall, counting and long text rise with the bytes of the state?",
        arms=tuple(arm for each in sizes for arm in _arms(each, compiled=scale != "smoke")),
        seeds=(0,) if scale == "smoke" else (0, 1, 2),
        eval_sequences=128,
        eval_batch_size=16,
        snapshots=3,
    )


def _arms(sizes: Sizes, compiled: bool) -> list[Arm]:
    task = sizes.task
    kind = "forgetting" if isinstance(task, MQAR) and task.num_rewrites else task.name
    return [
        Arm(
            name=f"{kind}-{name}",
            task=task,
            model=ModelConfig(
                vocab_size=task.num_tokens,
                num_layers=sizes.num_layers,
                mixers=(mixer,),
                backbone=Transformer(mlp_ratio=2.0, short_conv=4),
            ),
            training=Training(
                batch_size=sizes.batch_size,
                learning_rate=sizes.learning_rate,
                final_learning_rate=sizes.learning_rate / 10,
                warmup_tokens=100 * sizes.batch_size * task.seq_len,
                start_context=sizes.start_context,
                start_tokens=sizes.start_tokens,
                start_batch_size=sizes.start_batch_size,
                betas=(0.9, 0.95),
                compile=compiled,
            ),
            budget=Budget(flops=sizes.flops),
        )
        for name, mixer in _mixers(sizes).items()
    ]


def _mixers(sizes: Sizes) -> dict[str, MixerConfig]:
    """Heads of power and linear attention start with memories of the context's length and up, so that none is lost.

    FlexAttention, which takes seconds to compile for every window, pays on the long text only.
    """
    context = sizes.task.seq_len
    memory = (context / 64, float(context)) if sizes.rotary_base else (float(context), 16.0 * context)
    backend: Literal["auto", "blocked"] = "auto" if context > 4096 else "blocked"

    def sized(mixer: MixerConfig, head_dim: int = sizes.head_dim) -> MixerConfig:
        heads = sizes.width // head_dim
        return replace(mixer, width=sizes.width, num_heads=heads, rotary_base=sizes.rotary_base)

    power = Power(gate_timescale_tokens=memory)
    return {
        "softmax": sized(Softmax()),
        **{f"window-{w}": sized(Window(window=w, backend=backend)) for w in sizes.windows},
        "linear": sized(Linear(gate_timescale_tokens=memory)),
        **{f"power-d{head_dim}": sized(power, head_dim) for head_dim in sizes.power_head_dims},
    }
