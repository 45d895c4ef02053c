"""The smallest experiment that walks the whole path."""

from icl_eval import Arm, Budget, Experiment, Training
from icl_eval.models import Linear, ModelConfig, Power, Softmax, Transformer
from icl_eval.tasks import MQAR, SourceCode


def experiment() -> Experiment:
    """Three arms of about thirty steps each."""
    geometry = {"width": 16, "num_heads": 2}
    training = Training(batch_size=4, learning_rate=1e-2, final_learning_rate=1e-3, warmup_tokens=500)
    recall, text = MQAR(seq_len=32, vocab_size=32, num_pairs=4), SourceCode(seq_len=48, max_document_bytes=4096)
    arms = [("mqar-softmax", recall, Softmax), ("mqar-power", recall, Power), ("text-linear", text, Linear)]
    return Experiment(
        name="tiny",
        question="Does it run?",
        arms=tuple(
            Arm(
                name=name,
                task=task,
                model=ModelConfig(
                    vocab_size=task.num_tokens,
                    num_layers=1,
                    mixers=(mixer(**geometry),),
                    backbone=Transformer(mlp_ratio=1.0, short_conv=2),
                    tied_embeddings=task is text,
                ),
                training=training,
                budget=Budget(flops=1.5e8),
            )
            for name, task, mixer in arms
        ),
        eval_sequences=16,
        eval_batch_size=8,
        snapshots=5,
    )
