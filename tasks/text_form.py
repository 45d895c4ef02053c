"""Tasks as text: prompts and answers of a given length, for any model that reads text."""

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from icl_eval.config import lookup
from icl_eval.tasks.base import SPLITS
from icl_eval.tasks.draws import distinct
from icl_eval.tasks.lines import LineTask, TextExample, text_example
from icl_eval.tasks.needle import Needle
from icl_eval.tasks.phonebook import Phonebook
from icl_eval.tasks.variable_tracking import VariableTracking
from icl_eval.tasks.words import ADJECTIVES, AGENTS, OBJECTS, SYLLABLES, VERBS

Stream = Callable[[], np.random.Generator]
"""Gives an example's random stream, from its start."""
NUM_CHOICES = 4
"""Values to be ranked in recall."""
ITEM = 3
"""Words of an item in classification."""
TRIES = 100
"""Draws of a question in classification, of which the first that is new counts."""


def example(form: str, *, seed: int, index: int, num_bytes: int, **knobs: Any) -> TextExample:
    """Example ``index`` of a text form: as long a prompt as fits into ``num_bytes`` bytes. Pure.

    Args:
        form: a name of :data:`TEXT_FORMS`.
        seed: of the whole set of examples.
        index: of the example in the set.
        num_bytes: most bytes of the prompt, all ASCII; it falls short of them by less than two lines.
        knobs: fields of the task's config (``num_needles=8``), or arguments of :func:`recall` or
            :func:`classification`.

    Raises:
        ValueError: an unknown form, or one that needs more bytes.
    """
    make = lookup(TEXT_FORMS, form, "text form")
    try:
        return make(lambda: np.random.default_rng([len(SPLITS), seed, index]), num_bytes, **knobs)
    except ValueError as error:
        raise ValueError(f"text form {form!r} with num_bytes = {num_bytes}: {error}") from None


def fitted(config: type[LineTask], stream: Stream, num_bytes: int, **knobs: Any) -> TextExample:
    """The example of a task's longest sequence whose prompt fits."""
    made = None
    low, high = config(seq_len=num_bytes, **knobs).min_seq_len, num_bytes
    while low <= high:
        seq_len = (low + high) // 2
        tried = config(seq_len=seq_len, **knobs).example(stream())
        if len(tried.prompt) <= num_bytes:
            made, low = tried, seq_len + 1
        else:
            high = seq_len - 1
    if made is None:
        raise ValueError("too few bytes for the shortest prompt with these settings")
    return made


def recall(stream: Stream, num_bytes: int, *, num_rewrites: int = 0) -> TextExample:
    """Lines ``key: value`` of made-up words, then a key; with ``num_rewrites`` lines that give keys another value.

    The last value counts. Where there are rewrites, a rewritten key is asked for.
    """
    rng = stream()
    line = len("bababa: bababa\n")
    num_lines = (num_bytes - len("bababa:")) // line
    num_pairs = num_lines - num_rewrites
    if num_pairs < NUM_CHOICES:
        raise ValueError(f"too few bytes for {NUM_CHOICES} pairs and {num_rewrites} rewrites of {line} bytes each")
    words = _made_up_words(rng, num_pairs + num_lines)
    keys, values = words[:num_pairs], words[num_pairs:]
    written = rng.permutation(np.append(np.arange(num_pairs), rng.integers(0, num_pairs, num_rewrites)))
    rewritten = np.flatnonzero(np.bincount(written) > 1)
    asked = rng.choice(rewritten if num_rewrites else num_pairs)
    *old, last = np.flatnonzero(written == asked)
    others = rng.permutation(np.setdiff1d(np.arange(num_lines), [*old, last]))
    options = rng.permutation([last, *old, *others][:NUM_CHOICES])
    context = "".join(f"{keys[key]}: {value}\n" for key, value in zip(written, values, strict=True))
    return text_example(f"{context}{keys[asked]}:", [values[last]], int(last) * line, [values[o] for o in options])


def classification(
    stream: Stream, num_bytes: int, *, num_classes: int = 4, words_per_class: int = 8, noise: float = 0.3
) -> TextExample:
    """Few-shot classification: lines ``lamp kettle old -> LABEL``, then words whose label is asked for.

    Every class has a lexicon of its own, new in every example, and a made-up word as its label. With probability
    ``noise`` one word of a line comes from another class; the other two always tell. The words of the question's own
    class have all been shown with its label, but the question is no line over again, unless all that it could be are.
    """
    rng = stream()
    lexicon = ADJECTIVES + AGENTS + VERBS + OBJECTS
    if num_classes < 2 or words_per_class < ITEM or num_classes * words_per_class > len(lexicon):
        raise ValueError(
            f"num_classes = {num_classes} and words_per_class = {words_per_class}: must be at least 2 and {ITEM}, and "
            f"their product at most {len(lexicon)}"
        )
    words = rng.choice(lexicon, (num_classes, words_per_class), replace=False)
    labels = _made_up_words(rng, num_classes)

    def item(label: int, own: list[str]) -> list[str]:
        """Words of the class, then perhaps one of another."""
        foreign = rng.random() < noise or len(own) < ITEM
        chosen = rng.choice(own, ITEM - foreign, replace=False).tolist()
        other = (label + rng.integers(1, num_classes)) % num_classes
        return [*chosen, str(rng.choice(words[other]))] if foreign else chosen

    def line(item_words: list[str]) -> str:
        return f"{' '.join(rng.permutation(item_words))} ->"

    room = num_bytes - ITEM * (1 + max(map(len, lexicon))) - len("->")
    context, starts, shown = "", [0] * num_classes, [list[str]() for _ in labels]
    lines = set[frozenset[str]]()
    for label in itertools.chain.from_iterable(rng.permutation(num_classes) for _ in itertools.count()):
        chosen = item(label, words[label].tolist())
        shot = f"{line(chosen)} {labels[label]}\n"
        if len(context) + len(shot) > room:
            break
        if not shown[label]:
            starts[label] = len(context)
        shown[label] += [word for word in chosen if word in words[label] and word not in shown[label]]
        context += shot
        lines.add(frozenset(chosen))
    if not all(shown):
        raise ValueError(f"too few bytes for a line of each of {num_classes} classes")
    asked = int(rng.integers(num_classes))
    questions = (item(asked, shown[asked]) for _ in range(TRIES))
    new = next((words for words in questions if frozenset(words) not in lines), None)
    question = line(new or item(asked, shown[asked]))
    return text_example(context + question, [labels[asked]], starts[asked], labels)


def _made_up_words(rng: np.random.Generator, count: int) -> list[str]:
    """Distinct words of three syllables."""
    codes = distinct(rng, 1, len(SYLLABLES) ** 3, count)[0]
    return ["".join(SYLLABLES[s] for s in np.unravel_index(code, (len(SYLLABLES),) * 3)) for code in codes]


TEXT_FORMS: dict[str, Callable[..., TextExample]] = {
    "needle": partial(fitted, Needle, num_queries=1),
    "phonebook": partial(fitted, Phonebook),
    "variable_tracking": partial(fitted, VariableTracking),
    "recall": recall,
    "classification": classification,
}
