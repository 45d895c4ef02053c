"""Tasks as text in lm-eval: documents from our generators, scores by length and by depth."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import datasets
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask

from icl_eval.tasks.text_form import example

DEPTHS = 5
"""Parts of a prompt in which the evidence begins, scored apart."""
NUM_EXAMPLES = 100
SETTINGS = ("lengths", "unit", "num_examples", "seed", "tokenizer")


def documents(
    form: str,
    knobs: Mapping[str, Any] | None = None,
    lengths: int | Sequence[int] = 1024,
    unit: str = "bytes",
    num_examples: int = NUM_EXAMPLES,
    seed: int = 0,
    tokenizer: str | None = None,
    **others: Any,
) -> dict[str, datasets.Dataset]:
    """``num_examples`` documents a length, in order of the lengths.

    Args:
        form: a text form of ours.
        knobs: its settings.
        lengths: of the prompts, which fall short of them by less than two lines.
        unit: ``"bytes"``, or ``"tokens"`` of the tokeniser.
        num_examples: documents a length.
        seed: of the whole set.
        tokenizer: folder or name of a Hugging Face tokeniser, for lengths in tokens.
        others: what else lm-eval hands on, such as the model's arguments.

    Raises:
        ValueError: a setting is misspelt, or a length cannot be had.
    """
    for name in others:
        close = difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.8)
        if close:
            raise ValueError(f"unknown metadata {name!r}; did you mean {close[0]!r}?")
    if unit not in ("bytes", "tokens"):
        raise ValueError(f"metadata unit = {unit!r}: must be 'bytes' or 'tokens'")
    if unit == "tokens" and tokenizer is None:
        raise ValueError("metadata unit = 'tokens' needs tokenizer, a folder or name of a Hugging Face tokeniser")
    count = _counter(tokenizer) if unit == "tokens" and tokenizer is not None else None
    rows = []
    for length in [lengths] if isinstance(lengths, int) else lengths:
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"metadata lengths = {lengths!r}: must be positive whole numbers, such as [512, 1024]")
        for index in range(num_examples):

            def make(num_bytes: int, index: int = index) -> Any:
                return example(form, seed=seed, index=index, num_bytes=num_bytes, **(knobs or {}))

            made = make(length) if count is None else _fitted(make, length, count)
            answer = made.choices.index(made.answers[0]) if made.choices else -1
            rows.append({**made._asdict(), "answer": answer, "length": length})
    return {"test": datasets.Dataset.from_list(rows)}


class TextFormTask(ConfigurableTask):
    """A task of lm-eval whose metrics are ``score/LENGTH`` and ``score/LENGTH/depth_FROM-TO``, depth in percent.

    The score of a question is the share of its answers found in what the model writes, case aside, or, where options
    are ranked, whether the likeliest is right.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
        if doc["choices"]:
            log_likelihoods = [log_likelihood for log_likelihood, _ in results]
            score = float(log_likelihoods.index(max(log_likelihoods)) == doc["answer"])
        else:
            written = results[0].lower()
            score = mean([float(answer.lower() in written) for answer in doc["answers"]])
        return dict.fromkeys(_metrics(doc), score)

    def aggregation(self) -> dict[str, Callable]:
        return {name: mean for doc in self.eval_docs for name in _metrics(doc)}

    def higher_is_better(self) -> dict[str, bool]:
        return dict.fromkeys(self.aggregation(), True)


def _metrics(doc: dict[str, Any]) -> list[str]:
    part = min(int(doc["depth"] * DEPTHS), DEPTHS - 1)
    percent = 100 // DEPTHS
    return [f"score/{doc['length']}", f"score/{doc['length']}/depth_{part * percent}-{(part + 1) * percent}"]


def _fitted(make: Callable[[int], Any], length: int, count: Callable[[str], int]) -> Any:
    """The longest example of ``length`` tokens at most, by bisection over bytes."""
    low, high = 1, 2
    while (longer := _made(make, high)) is None or count(longer.prompt) <= length:
        if longer is not None:
            low = high
        high *= 2
        if longer is None and high > 64 * length:
            break
    while high - low > 1:
        middle = (low + high) // 2
        made = _made(make, middle)
        if made is None or count(made.prompt) <= length:
            low = middle
        else:
            high = middle
    made = make(low)
    if count(made.prompt) > length:
        raise ValueError(f"length = {length} tokens: too few for the shortest prompt with these settings")
    return made


def _made(make: Callable[[int], Any], num_bytes: int) -> Any:
    """The example, or ``None`` where so few bytes hold none."""
    try:
        return make(num_bytes)
    except ValueError:
        return None


@cache
def _counter(tokenizer: str) -> Callable[[str], int]:
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    return lambda text: len(encode(text, add_special_tokens=False)["input_ids"])
