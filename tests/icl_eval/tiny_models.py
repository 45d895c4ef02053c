"""Documents and models that tests make themselves: runs of ours, a GPT-2 and a Llama with random weights."""

from pathlib import Path

import numpy as np
import torch

from icl_eval import Arm, Budget, Experiment, Training
from icl_eval.models import Linear, ModelConfig, Power, Softmax, Transformer, Window
from icl_eval.run import run_experiment
from icl_eval.tasks import Files

AWKWARD = "naïve café\u0301 \U0001f600\U0001f469\u200d\U0001f680 日本語 \u202eabc\u202c \ufeff\x00 ﬁ Ω≈ç√ \r\n\t\u3000ß"
WORDS = ("the", "cat", "saw", "naïve", "café", "日本", "\U0001f600", "old", "lamp", "of", "Ωmega", "\n", "ship,", "is")


def awkward_text(seed: int, length: int) -> str:
    """Random characters from all over Unicode, between words."""
    rng = np.random.default_rng(seed)
    pool = [*AWKWARD, *WORDS]
    return "".join(rng.choice(pool) + rng.choice(["", " "]) for _ in range(length))


def write_documents(folder: Path, num_documents: int = 6, words: int = 120) -> Path:
    """A folder of text files, half of them held out; returns it."""
    rng = np.random.default_rng(0)
    for split in ("train", "heldout"):
        (folder / split).mkdir(parents=True)
        for number in range(num_documents):
            text = " ".join(rng.choice(WORDS, words + 10 * number))
            (folder / split / f"{number}.txt").write_text(text)
    return folder


def tiny_runs(folder: Path, documents: Path) -> dict[str, Path]:
    """Run folders of four mixers that have read a few bytes, by mixer."""
    training = Training(batch_size=4, learning_rate=1e-2, final_learning_rate=1e-3, warmup_tokens=100)
    geometry = {"width": 16, "num_heads": 2}
    mixers = (Softmax(**geometry), Window(window=8, **geometry), Linear(**geometry), Power(**geometry))
    experiment = Experiment(
        name="bytes",
        question="Do they read?",
        arms=tuple(
            Arm(
                name=mixer.name,
                task=Files(path=str(documents), seq_len=48),
                model=ModelConfig(num_layers=2, mixers=(mixer,), backbone=Transformer(mlp_ratio=1.0, short_conv=3)),
                training=training,
                budget=Budget(tokens=4 * 48 * 12),
            )
            for mixer in mixers
        ),
        eval_sequences=8,
        eval_batch_size=4,
        snapshots=1,
    )
    root = run_experiment(experiment, folder, device="cpu")
    return {mixer.name: root / mixer.name / "seed0" for mixer in mixers}


def save_tokenizer(folder: Path, texts: list[str], vocab_size: int = 300, *, bos: bool = False) -> int:
    """A byte-level BPE trained on texts, as a Hugging Face tokeniser; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *(["<s>"] if bos else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|endoftext|>", **({"bos_token": "<s>"} if bos else {})
    )
    fast.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def save_gpt2(folder: Path, texts: list[str], *, context: int = 64) -> Path:
    """A GPT-2 of random weights, whose positions are a table of ``context`` rows."""
    from transformers import GPT2Config, GPT2LMHeadModel

    vocab_size = save_tokenizer(folder, texts)
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=context, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def save_llama(folder: Path, texts: list[str], *, context: int = 64) -> Path:
    """A Llama of random weights with a vocabulary of its own and a token before every text."""
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab_size = save_tokenizer(folder, texts, 330, bos=True)
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=vocab_size, max_position_embeddings=context, hidden_size=16, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder
