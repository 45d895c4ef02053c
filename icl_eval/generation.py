"""Text from a model: decoding with a carried state, stop strings, several samples."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from icl_eval.causal import CausalModel
from icl_eval.config import did_you_mean
from icl_eval.scoring import chunk_tokens
from icl_eval.text_tokens import TextTokenizer

_NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "length_penalty": 1.0, "use_cache": True, "min_p": 0.0}
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to write on.

    Attributes:
        until: strings that end the text; they are not part of it.
        max_new_tokens: most tokens written.
        temperature: 0 takes the likeliest token; otherwise samples from ``softmax(logits / temperature)``.
        top_k: samples from the k likeliest tokens only; 0 for all.
        top_p: samples from the likeliest tokens that hold this share of the probability, one at least.

    Raises:
        ValueError: a number is out of its range.
    """

    until: tuple[str, ...] = ()
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, holds, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 0, "at least 0"),
            ("temperature", 0 <= self.temperature < math.inf, "at least 0, and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 <= self.top_p <= 1, "from 0 to 1"),
        ):
            if not holds:
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be {allowed}")

    @classmethod
    def from_gen_kwargs(cls, given: Mapping[str, Any]) -> "Decoding":
        """lm-eval's generation arguments.

        Raises:
            ValueError: an argument is unknown, or asks for what is not done here, such as beam search.
        """
        rest = dict(given)
        until = rest.pop("until", rest.pop("stop", None)) or ()
        sample = rest.pop("do_sample", None)

        def number(name: str, default: float) -> float:
            value = rest.pop(name, default)
            try:
                found = float(value)
            except (TypeError, ValueError):
                found = math.nan
            if not math.isfinite(found):
                raise ValueError(f"generation argument {name} = {value!r}: must be a finite number")
            return found

        lengths = [int(number(name, 0)) for name in _LENGTHS if name in rest]
        temperature = number("temperature", 1.0 if sample else 0.0)
        top_k, top_p = int(number("top_k", 0)), number("top_p", 1.0)
        for name, value in rest.items():
            if name not in _NEUTRAL:
                known = {*_LENGTHS, "until", "do_sample", "temperature", "top_k", "top_p"}
                raise ValueError(f"unknown generation argument {name!r}; {did_you_mean(name, known)}")
            if value != _NEUTRAL[name]:
                raise ValueError(f"generation argument {name} = {value!r}: must be {_NEUTRAL[name]!r}")
        return cls(
            until=(until,) if isinstance(until, str) else tuple(until),
            max_new_tokens=min(lengths, default=cls.max_new_tokens),
            temperature=0.0 if sample is False else temperature,
            top_k=top_k,
            top_p=top_p,
        )


def generate(
    model: CausalModel,
    tokenizer: TextTokenizer,
    prompt: Tensor,
    decoding: Decoding,
    seeds: Sequence[int],
) -> list[str]:
    """What the model writes after each prompt, up to the first stop string, wherever tokens end.

    Memory stays constant for mixers of constant state: nothing is read twice.

    Args:
        prompt: int64 ``[B, T]`` on the CPU, T >= 1.
        seeds: of each row's sampling; a row's text does not depend on the other rows.
    """
    B = len(prompt)
    size = chunk_tokens(model, B)
    state: Any = None
    for begin in range(0, prompt.shape[1], size):
        last = begin + size >= prompt.shape[1]
        logits, state = model.read(prompt[:, begin : begin + size].to(model.device), state, logits=last)
    samplers = [torch.Generator().manual_seed(seed) for seed in seeds]
    written: list[list[int]] = [[] for _ in range(B)]
    finished: list[str | None] = [None] * B
    for remaining in range(decoding.max_new_tokens, 0, -1):
        assert logits is not None
        scores = logits[:, -1].float().cpu()
        tokens = [_choose(row, decoding, sampler) for row, sampler in zip(scores, samplers, strict=True)]
        for index, token in enumerate(tokens):
            if finished[index] is None:
                ended = token == tokenizer.end_of_text
                written[index] += [] if ended else [token]
                finished[index] = _stopped(tokenizer.decode(written[index]), decoding.until, ended)
        if remaining == 1 or None not in finished:
            break
        logits, state = model.read(torch.tensor(tokens, device=model.device)[:, None], state)
    return [tokenizer.decode(w) if text is None else text for w, text in zip(written, finished, strict=True)]


def _stopped(text: str, until: Sequence[str], ended: bool) -> str | None:
    """The text before its first stop string; the whole text if it has ended, ``None`` if it goes on."""
    places = [place for stop in until if stop and (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text if ended else None


def _choose(scores: Tensor, decoding: Decoding, sampler: torch.Generator) -> int:
    if decoding.temperature == 0:
        return int(scores.argmax())
    probabilities, order = ((scores - scores.max()) / decoding.temperature).softmax(-1).sort(descending=True)
    if decoding.top_k:
        probabilities[decoding.top_k :] = 0
    probabilities[1:][probabilities.cumsum(-1)[:-1] >= decoding.top_p] = 0
    return int(order[torch.multinomial(probabilities, 1, generator=sampler)])
