"""Causal language models behind one face: ours from run folders, and those of Hugging Face."""

import inspect
import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from icl_eval.checkpoint import load_weights
from icl_eval.measure import ScoredLoss
from icl_eval.models import LanguageModel
from icl_eval.run_folder import Run, RunFolderError, load_run
from icl_eval.text_tokens import ByteTokenizer, SubwordTokenizer, TextTokenizer


class CausalModel(Protocol):
    """A model that reads a sequence piece by piece.

    Attributes:
        vocab_size: tokens of the vocabulary.
        max_context: most tokens it can read, or ``None`` where nothing but memory limits it.
        trained_context: tokens of the sequences it was trained on, or ``None`` where that is not known.
        device: where its tokens must lie.
    """

    vocab_size: int
    max_context: int | None
    trained_context: int | None
    device: torch.device

    def read(self, tokens: Tensor, state: Any, *, logits: bool = True) -> tuple[Tensor | None, Any]:
        """Logits ``[B, T, vocab]`` (``None`` unless asked for) of tokens ``[B, T]`` that follow ``state``, and the
        state after them. ``None`` is the state before the first token; a state that was read from is spent.
        """


class TrainedModel:
    """One of our models.

    Args:
        model: the module, its weights loaded.
        device: where it runs.
        trained_context: tokens of the sequences it was trained on.
    """

    max_context = None

    def __init__(self, model: LanguageModel, device: torch.device, trained_context: int | None = None):
        self.model = model.to(device).eval()
        self.trained_context = trained_context
        self.vocab_size, self.device = model.config.vocab_size, device

    @torch.no_grad()
    def read(self, tokens: Tensor, state: Any, *, logits: bool = True) -> tuple[Tensor | None, Any]:
        hidden, state = self.model.hidden(tokens, state)
        return self.model.head(hidden) if logits else None, state


class HuggingFaceModel:
    """A causal model of the ``transformers`` library.

    Args:
        model: the library's.
        device: where it runs.
    """

    def __init__(self, model: Any, device: torch.device):
        self.model = model.to(device).eval()
        config = model.config.get_text_config()
        self.vocab_size, self.device = config.vocab_size, device
        self.trained_context = getattr(config, "max_position_embeddings", None)
        self.max_context = self.trained_context if _learned_positions(model, self.trained_context) else None
        self._can_skip = "logits_to_keep" in inspect.signature(model.forward).parameters

    @torch.no_grad()
    def read(self, tokens: Tensor, state: Any, *, logits: bool = True) -> tuple[Tensor | None, Any]:
        keep = {"logits_to_keep": 1} if self._can_skip and not logits else {}
        out = self.model(input_ids=tokens, past_key_values=state, use_cache=True, **keep)
        if out.get("past_key_values") is None:
            raise ValueError(f"{type(self.model).__name__} keeps no key-value cache, so it cannot be read in pieces")
        return out.logits if logits else None, out.past_key_values


def _learned_positions(model: Any, context: int | None) -> bool:
    """Whether positions are rows of a table, beyond which the model cannot read."""
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    return context is not None and any(
        table is not model.get_input_embeddings() and 0 <= table.num_embeddings - context <= 2 for table in tables
    )


class Trained(NamedTuple):
    """A model of ours, read from its run.

    Attributes:
        model, tokenizer: what reads, and how text becomes what it reads.
        run: where it came from.
        sha256: of the weights.
    """

    model: TrainedModel
    tokenizer: TextTokenizer
    run: Run
    sha256: str


def load_trained(path: str | Path, device: torch.device) -> Trained:
    """The model of a finished run.

    Raises:
        RunFolderError: the run diverged, its checkpoint is gone or damaged, or its tokens are not text.
    """
    run = load_run(path)
    if run.diverged:
        raise RunFolderError(f"the run in {run.path} diverged: there is no model to evaluate")
    model = run.arm.model.build()
    tokenizer = run_tokenizer(run)
    sha256 = load_weights(run.path / "checkpoint", ScoredLoss(model))
    return Trained(TrainedModel(model, device, run.arm.task.seq_len), tokenizer, run, sha256)


def run_tokenizer(run: Run) -> TextTokenizer:
    """The tokeniser that a run was trained with.

    Raises:
        RunFolderError: its tokens are not text, or not those of the tokeniser it holds.
    """
    file, vocab_size = run.path / "tokenizer.json", run.arm.model.vocab_size
    tokenizer: TextTokenizer
    if file.is_file():
        tokenizer = SubwordTokenizer.from_file(file)
    elif vocab_size == ByteTokenizer.num_tokens:
        tokenizer = ByteTokenizer()
    else:
        raise RunFolderError(
            f"the run in {run.path} learned {run.arm.task.name!r}, whose {vocab_size} tokens are not text: it cannot "
            "read text"
        )
    check_vocabulary(tokenizer, vocab_size, str(run.path))
    return tokenizer


def load_pretrained(
    name: str, device: torch.device, *, dtype: torch.dtype, trust_remote_code: bool = False, offline: bool = False
) -> tuple[HuggingFaceModel, TextTokenizer]:
    """A model and its tokeniser from a local folder or from the hub; no code of theirs runs unless trusted.

    Raises:
        ValueError: ``transformers`` is missing, or the model cannot be loaded, or not without running its code.
    """
    try:
        import transformers
    except ImportError:
        raise ValueError(f"{name} needs the package transformers: pip install 'icl-eval[hf]'") from None
    options = {"trust_remote_code": trust_remote_code, "local_files_only": offline or Path(name).is_dir()}
    if not trust_remote_code and _wants_code(name):
        raise ValueError(f"{name} brings code of its own, which runs only with --trust-remote-code")
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=dtype, **options)
        fast = transformers.AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        offline_hint = " (the network was not used)" if options["local_files_only"] else ""
        raise ValueError(f"cannot load {name}{offline_hint}: {_first_line(error)}") from error
    backend = getattr(fast, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(f"{name}: its tokeniser {type(fast).__name__} does not say which bytes a token stands for")
    first = next(iter(fast("a")["input_ids"]), None)
    prefix = first if first is not None and first == fast.bos_token_id else None
    tokenizer = SubwordTokenizer(backend, prefix=prefix, end_of_text=fast.eos_token_id)
    causal = HuggingFaceModel(model, device)
    check_vocabulary(tokenizer, causal.vocab_size, name)
    return causal, tokenizer


def check_vocabulary(tokenizer: TextTokenizer, vocab_size: int, name: str) -> None:
    """Raise ``ValueError`` where a tokeniser has tokens that the model lacks."""
    if tokenizer.num_tokens > vocab_size:
        raise ValueError(
            f"{name}: its tokeniser has {tokenizer.num_tokens:,} tokens, the model {vocab_size:,}: they do not belong "
            "together"
        )


def _wants_code(name: str) -> bool:
    file = Path(name) / "config.json"
    try:
        return "auto_map" in json.loads(file.read_text())
    except (OSError, ValueError):
        return False


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
