"""Causal language models behind one face: ours from run folders, and those of Hugging Face."""

import hashlib
import inspect
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

    def read(
        self, tokens: Tensor, state: Any, *, logits: bool = True, context: int | None = None
    ) -> tuple[Tensor | None, Any]:
        """Logits ``[B, T, vocab]`` (``None`` unless asked for) of tokens ``[B, T]`` that follow ``state``, and the
        state after them. ``None`` is the state before the first token; a state that was read from is spent.

        Args:
            context: tokens that will be read in all, if known: a state that grows can have room for them at once.
        """

    def state_elements(self, state: Any, context: int) -> int:
        """What the state of one sequence holds after ``context`` tokens."""


class TrainedModel:
    """One of our models.

    Args:
        model: the module, its weights loaded.
        device: where it runs.
        trained_context: tokens of the sequences it was trained on.
        dtype: of its arithmetic; weights stay in float32.
    """

    max_context: int | None = None

    def __init__(
        self,
        model: LanguageModel,
        device: torch.device,
        trained_context: int | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.model = model.to(device).eval()
        self.trained_context, self._dtype = trained_context, dtype
        self.vocab_size, self.device = model.config.vocab_size, device

    @torch.no_grad()
    def read(
        self, tokens: Tensor, state: Any, *, logits: bool = True, context: int | None = None
    ) -> tuple[Tensor | None, Any]:
        with torch.autocast(self.device.type, self._dtype, enabled=self._dtype != torch.float32):
            hidden, state = self.model.hidden(tokens, state)
            return self.model.head(hidden) if logits else None, state

    def state_elements(self, state: Any, context: int) -> int:
        return self.model.state_size(context).mathematical


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
        parameters = inspect.signature(model.forward).parameters
        self._can_skip = "logits_to_keep" in parameters
        self._cache = "cache" if "cache" in parameters else "past_key_values"

    @torch.no_grad()
    def read(
        self, tokens: Tensor, state: Any, *, logits: bool = True, context: int | None = None
    ) -> tuple[Tensor | None, Any]:
        keep = {"logits_to_keep": 1} if self._can_skip and not logits else {}
        out = self.model(input_ids=tokens, use_cache=True, **{self._cache: state}, **keep)
        cache = out.get(self._cache)
        if cache is None:
            raise ValueError(f"{type(self.model).__name__} keeps no key-value cache, so it cannot be read in pieces")
        if state is None and context is not None:
            from icl_eval.reserved_cache import reserve

            reserve(cache, context)
        return out.logits if logits else None, cache

    def state_elements(self, state: Any, context: int) -> int:
        tensors = [x for layer in state.layers for x in vars(layer).values() if isinstance(x, Tensor) and x.ndim > 1]
        return sum(tensor[0].numel() for tensor in tensors)


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
    """

    model: TrainedModel
    tokenizer: TextTokenizer
    run: Run


def load_trained(path: str | Path, device: torch.device, dtype: torch.dtype = torch.float32) -> Trained:
    """The model of a finished run.

    Raises:
        RunFolderError: the run diverged, its checkpoint is gone or damaged, or its tokens are not text.
    """
    run = load_run(path)
    if run.diverged:
        raise RunFolderError(f"the run in {run.path} diverged: there is no model to evaluate")
    model = run.arm.model.build()
    tokenizer = run_tokenizer(run)
    load_weights(run.path / "checkpoint", ScoredLoss(model))
    return Trained(TrainedModel(model, device, run.arm.task.seq_len, dtype), tokenizer, run)


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


class Pretrained:
    """A model of the ``transformers`` library, in a local folder or on the hub, that is yet to be loaded.

    No code that comes with it runs unless it is trusted.

    Args:
        name: folder, or name on the hub.
        trust_remote_code: whether code that comes with it may run.
        offline: whether to keep from the network.

    Raises:
        ValueError: ``transformers`` is missing, there is no such model, it wants to run its own code, or its tokeniser
            does not say which bytes a token stands for.
    """

    def __init__(self, name: str, *, trust_remote_code: bool = False, offline: bool = False):
        try:
            import transformers
        except ImportError:
            raise ValueError(f"{name} needs the package transformers: pip install 'icl-eval[hf]'") from None
        transformers.utils.logging.disable_progress_bar()
        self.name = name
        self._options = {"trust_remote_code": trust_remote_code, "local_files_only": offline or Path(name).is_dir()}
        self.config = self._load(transformers.AutoConfig)
        fast = self._load(transformers.AutoTokenizer)
        if not hasattr(fast, "backend_tokenizer"):
            raise ValueError(f"{name}: its tokeniser {type(fast).__name__} does not say which bytes a token stands for")
        first = next(iter(fast("a")["input_ids"]), None)
        prefix = first if first is not None and first == fast.bos_token_id else None
        self.tokenizer = SubwordTokenizer(fast.backend_tokenizer, prefix=prefix, end_of_text=fast.eos_token_id)
        text_config = self.config.get_text_config()
        self.trained_context = getattr(text_config, "max_position_embeddings", None)
        check_vocabulary(self.tokenizer, text_config.vocab_size, name)

    def load(self, device: torch.device, dtype: torch.dtype) -> HuggingFaceModel:
        """The model, its weights in ``dtype``."""
        import transformers

        return HuggingFaceModel(self._load(transformers.AutoModelForCausalLM, dtype=dtype), device)

    def revision(self) -> str:
        """Commit on the hub, or hash of the weights' files in the folder."""
        if not Path(self.name).is_dir():
            return str(getattr(self.config, "_commit_hash", None))
        digest = hashlib.sha256()
        for file in sorted(Path(self.name).glob("*")):
            if file.suffix in (".safetensors", ".bin"):
                with file.open("rb") as weights:
                    digest.update(hashlib.file_digest(weights, "sha256").digest())
        return digest.hexdigest()

    def _load(self, kind: Any, **options: Any) -> Any:
        try:
            return kind.from_pretrained(self.name, **self._options, **options)
        except (OSError, ValueError, ImportError, KeyError) as error:
            if "trust_remote_code" in str(error):
                raise ValueError(
                    f"{self.name} brings code of its own, which runs only with --trust-remote-code"
                ) from None
            without = " without the network" if self._options["local_files_only"] else ""
            raise ValueError(f"cannot load {self.name}{without}: {str(error).strip().splitlines()[0]}") from error


def check_vocabulary(tokenizer: TextTokenizer, vocab_size: int, name: str) -> None:
    """Raise ``ValueError`` where a tokeniser has tokens that the model lacks."""
    if tokenizer.num_tokens > vocab_size:
        raise ValueError(
            f"{name}: its tokeniser has {tokenizer.num_tokens:,} tokens, the model {vocab_size:,}: they do not belong "
            "together"
        )
