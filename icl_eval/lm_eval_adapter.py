"""Our models in lm-eval: the model ``icl-eval``, whose argument ``run`` names a run folder."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from icl_eval.causal import load_trained
from icl_eval.checkpoint import weights_hash
from icl_eval.generation import Decoding, generate
from icl_eval.presets import load_preset
from icl_eval.request_cache import RequestCache
from icl_eval.run import make_accelerator
from icl_eval.scoring import in_batches, padded, score


@dataclass(frozen=True)
class Pair:
    """A text in tokens, and the index of the first of them to be scored."""

    tokens: np.ndarray
    first: int

    def __len__(self) -> int:
        return len(self.tokens)


@register_model("icl-eval")
class RunFolderLM(LM):
    """The model of a run folder as lm-eval's requests see it.

    A text that nothing stands before is read after the vocabulary's end-of-text token, or a newline where there is
    none. No text is cut: the state is carried through all of it. Answers are kept in the run folder as they come, and
    not computed again.

    Args:
        run: the run folder.
        batch_size: most sequences read at a time; ``"auto"`` for as many as hold 32,768 tokens.
        max_batch_size: the same, where ``batch_size`` is ``"auto"``.
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        seed: of sampling.
        preset: the user's file, where the run uses tasks or mixers of theirs.
        resume: whether answers are kept in, and taken from, the run folder.

    Raises:
        RunFolderError: there is no finished run, or no model in it that reads text.
    """

    def __init__(
        self,
        run: str,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        seed: int = 0,
        preset: str | None = None,
        resume: bool = True,
    ):
        super().__init__()
        most = max_batch_size if batch_size is None or str(batch_size).startswith("auto") else batch_size
        if most is not None and not (str(most).isdecimal() and int(most) > 0):
            raise ValueError(f"batch_size = {most!r}: must be a whole number of at least 1, or 'auto'")
        if preset is not None:
            load_preset(preset)
        target = make_accelerator((device or "auto").split(":")[0]).device
        self.model, self.tokenizer, self.run = load_trained(run, target)
        self._most = None if most is None else int(most)
        self._device, self._seed = target, seed
        sha256 = weights_hash(self.run.path / "checkpoint")
        file = self.run.path / "lm_eval" / f"answers-{sha256[:8]}.jsonl" if resume else None
        self._cache = RequestCache(file, f"{sha256} {target.type}")

    @property
    def tokenizer_name(self) -> str:
        return f"{type(self.tokenizer).__name__}-{self.tokenizer.num_tokens}"

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood (nats) of each continuation, and whether it is what greedy decoding gives."""
        keys = [self._cache.key("loglikelihood", *request.args) for request in requests]
        pairs = {key: self._pair(*request.args) for key, request in self._missing(keys, requests)}
        self._answer(pairs, self._score)
        return [tuple(self._cache[key]) for key in keys]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-likelihood (nats) of each whole text; its beginning is never forgotten."""
        keys = [self._cache.key("loglikelihood", "", *request.args) for request in requests]
        pairs = {key: self._pair("", *request.args) for key, request in self._missing(keys, requests)}
        self._answer(pairs, self._score)
        return [self._cache[key][0] for key in keys]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """What the model writes after each prompt; equal requests that ask for samples get different ones."""
        keys, repeats = [], Counter[str]()
        for request in requests:
            context, options = request.args
            sampling = Decoding.from_gen_kwargs(options).temperature > 0
            key = self._cache.key("generate_until", context, options, self._seed if sampling else None)
            keys.append(self._cache.key("sample", key, repeats[key]) if sampling else key)
            repeats[key] += 1
        groups: dict[tuple[int, Decoding], dict[str, np.ndarray]] = {}
        for key, request in self._missing(keys, requests):
            tokens = self.tokenizer.encode(request.args[0]).tokens
            tokens = tokens if len(tokens) else np.array([self.tokenizer.prefix])
            decoding = Decoding.from_gen_kwargs(request.args[1])
            groups.setdefault((len(tokens), decoding), {})[key] = tokens
        for (_, decoding), prompts in groups.items():
            self._answer(prompts, partial(self._write, decoding=decoding))
        return [self._cache[key] for key in keys]

    def _missing(self, keys: Sequence[str], requests: Sequence[Instance]) -> Iterator[tuple[str, Instance]]:
        return ((key, request) for key, request in zip(keys, requests, strict=True) if key not in self._cache)

    def _answer(self, todo: dict[str, Any], work: Callable[[dict[str, Any]], list[Any]]) -> None:
        """Put into the cache what ``work`` gives for the items of ``todo``, batch by batch, longest first."""

        def batch(keys: Sequence[str]) -> list[Any]:
            answers = work({key: todo[key] for key in keys})
            for key, answer in zip(keys, answers, strict=True):
                self._cache.add(key, answer)
            return answers

        def size(key: str) -> int:
            return len(todo[key])

        in_batches(batch, sorted(todo, key=size, reverse=True), size, most=self._most)

    def _pair(self, context: str, continuation: str) -> Pair:
        """Context and continuation as tokens; a token that reaches into both is the continuation's."""
        before, whole = (self.tokenizer.encode(text).tokens for text in (context, context + continuation))
        length = min(len(before), len(whole))
        shared = int(np.append(before[:length] == whole[:length], False).argmin())
        if shared == 0:
            return Pair(np.concatenate([[self.tokenizer.prefix], whole]), 1)
        return Pair(whole, shared)

    def _score(self, pairs: dict[str, Pair]) -> list[tuple[float, bool]]:
        first = min(pair.first for pair in pairs.values())
        nll, greedy, _ = score(self.model, padded([pair.tokens for pair in pairs.values()]), first=first)
        spans = [(row, slice(pair.first, len(pair.tokens))) for row, pair in enumerate(pairs.values())]
        return [(-float(nll[row, span].sum()), bool(greedy[row, span].all())) for row, span in spans]

    def _write(self, prompts: dict[str, np.ndarray], decoding: Decoding) -> list[str]:
        """The key of a request is the seed of its sample."""
        tokens = torch.from_numpy(np.stack(list(prompts.values())))
        return generate(self.model, self.tokenizer, tokens, decoding, [int(key[:15], 16) for key in prompts])
