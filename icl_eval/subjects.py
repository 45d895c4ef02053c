"""Models to be measured, ours and others', found by name and loaded one at a time."""

import re
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from icl_eval.causal import CausalModel, Pretrained, load_trained, run_tokenizer
from icl_eval.checkpoint import weights_hash
from icl_eval.measured import PretrainedConfig
from icl_eval.models import ModelConfig
from icl_eval.run_folder import Run, load_runs
from icl_eval.text_tokens import TextTokenizer

UNTRAINED = {"step": 0, "tokens": 0, "flops": float("nan"), "seconds": float("nan")}


class Subject(NamedTuple):
    """A model to be measured.

    Attributes:
        name, seed: what it is called.
        tokenizer: what it reads with.
        trained_context: tokens of the sequences it was trained on, if known.
        identity: hash or commit of its weights.
        load: gives the model, and the config that describes it.
        spent: what its training took, where known: step, tokens, FLOPs, seconds.
    """

    name: str
    seed: int
    tokenizer: TextTokenizer
    trained_context: int | None
    identity: str
    load: Callable[[], tuple[CausalModel, ModelConfig | PretrainedConfig]]
    spent: dict[str, Any]


def find_subjects(
    names: Sequence[str], device: torch.device, dtype: torch.dtype, *, trust_remote_code: bool, offline: bool
) -> list[Subject]:
    """The models that names stand for: run folders (or folders of runs), Hugging Face folders, names on the hub.

    Raises:
        ValueError: there is no such model, or its tokens are not text.
        RunFolderError: a run is unfinished, or its checkpoint is gone.
    """
    found: list[Subject] = []
    for name in names:
        path = Path(name)
        misspelt = "/" in name and path.parent.is_dir()  # a folder beside others, not an owner on the hub
        if path.is_dir() and (any(path.rglob("DONE")) or (path / "env.json").is_file()):
            found += [_trained(run, device, dtype) for run in load_runs(path)]
        elif path.exists() or (re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not misspelt):
            pretrained = Pretrained(name, trust_remote_code=trust_remote_code, offline=offline)
            found.append(_pretrained(pretrained, device, dtype))
        else:
            raise ValueError(f"there is no folder {name!r}, and no model of the hub can be called so")
    taken: set[tuple[str, int]] = set()
    return [subject._replace(name=_distinct(subject, taken)) for subject in found]


def _trained(run: Run, device: torch.device, dtype: torch.dtype) -> Subject:
    def load() -> tuple[CausalModel, ModelConfig]:
        return load_trained(run.path, device, dtype).model, run.arm.model

    last = run.positions
    names = ("step", "tokens", "flops", "seconds")
    spent = UNTRAINED if last is None else {name: getattr(last, name)[-1].item() for name in names}
    tokenizer, identity = run_tokenizer(run), weights_hash(run.path / "checkpoint")
    return Subject(run.name, run.seed, tokenizer, run.arm.task.seq_len, identity, load, spent)


def _pretrained(pretrained: Pretrained, device: torch.device, dtype: torch.dtype) -> Subject:
    revision = pretrained.revision()

    def load() -> tuple[CausalModel, PretrainedConfig]:
        causal = pretrained.load(device, dtype)
        described = PretrainedConfig(
            source=pretrained.name,
            revision=revision,
            architecture=type(causal.model).__name__,
            num_parameters=causal.model.num_parameters(),
            num_layers=pretrained.config.get_text_config().num_hidden_layers,
            vocab_size=causal.vocab_size,
            trained_context=pretrained.trained_context,
        )
        return causal, described

    folder = Path(pretrained.name)
    name = re.sub(r"[^\w.-]", "-", folder.resolve().name if folder.is_dir() else pretrained.name)
    return Subject(name, 0, pretrained.tokenizer, pretrained.trained_context, revision, load, UNTRAINED)


def _distinct(subject: Subject, taken: set[tuple[str, int]]) -> str:
    """A name that no other subject of this seed has; it is taken from now on."""
    candidates = (subject.name if n == 1 else f"{subject.name}-{n}" for n in count(1))
    name = next(name for name in candidates if (name, subject.seed) not in taken)
    taken.add((name, subject.seed))
    return name
