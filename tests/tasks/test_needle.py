"""Needles: numbers found in the text, a haystack without repetition, purity."""

import re
from collections import Counter

import numpy as np
import pytest

from icl_eval.tasks import Needle
from icl_eval.tasks.needle import VOCABULARY
from tests.tasks.generated import assert_at_chance, assert_certain, assert_pure, digest

SENTENCE = re.compile(r"The \w+ \w+ \w+ the \w+ \w+\.")
NUMBER = re.compile(r"One of the special magic numbers for (\w+ \w+) is: (\d{7})\.")
EXAMPLE = """
One of the special magic numbers for red lamp is: 1047592.
The old fisher found the pale kite.
One of the special magic numbers for old coin is: 6601830.
One of the special magic numbers for red lamp is: 10"""


def found(text: str) -> str:
    """The next digit of the number asked for in the last line; of the text's first number where there is none."""
    key, said = text.rsplit("\n", 1)[-1].removeprefix("One of the special magic numbers for ").split(" is: ")
    numbers = NUMBER.findall(text)
    return dict(numbers).get(key, numbers[0][1] if numbers else "1000000")[len(said)]


def predict(tokens: list[int]) -> int:
    return VOCABULARY.pieces.index(found(VOCABULARY.render(tokens)))


def test_the_example_of_the_docstring() -> None:
    assert found(EXAMPLE) == "4"


@pytest.mark.parametrize(
    "task",
    [
        Needle(),
        Needle(num_needles=9, num_queries=9, seq_len=400),
        Needle(num_needles=40, num_queries=2, seq_len=503),
        Needle(num_needles=1, num_queries=1, seq_len=30),
    ],
    ids=["default", "all asked", "needles only", "one"],
)
def test_numbers_are_found_and_nothing_repeats(task: Needle) -> None:
    assert_certain(task, predict, num_sequences=16)
    batch = task.build(0).batch("train", 0, 8)
    for row, position, scored in zip(batch.tokens, batch.position, batch.scored, strict=True):
        text = VOCABULARY.render(row.tolist())
        lines = text.strip("\n").split("\n")
        context, questions = lines[: -task.num_queries], lines[-task.num_queries :]
        counts = Counter(SENTENCE.fullmatch(line) is not None for line in context)
        assert counts[False] == task.num_needles
        assert len(set(context)) == len(context)
        numbers = [NUMBER.fullmatch(line) for line in context if not SENTENCE.fullmatch(line)]
        assert len({n[1] for n in numbers}) == len({n[2] for n in numbers}) == task.num_needles
        assert set(questions[:-1]) < set(context)
        assert len(set(questions)) == task.num_queries
        for t in np.flatnonzero(scored.numpy())[:-1]:
            assert row[t + 1] == row[t + 1 - position[t]]
        assert text.startswith(
            "\n" * ((task.seq_len + 1) - 12 * (task.num_needles + task.num_queries) - 8 * counts[True])
        )


def test_needles_lie_anywhere() -> None:
    task = Needle(seq_len=1000, num_queries=1)
    batch = task.build(0).batch("train", 0, 2000)
    distance = batch.position.max(dim=1).values.numpy()
    assert np.histogram(distance, 4, (0, 1000))[0] / 2000 == pytest.approx([0.25] * 4, abs=0.05)


def test_only_the_own_haystack_tells() -> None:
    assert_at_chance(Needle(seq_len=200), predict, own=4, num_sequences=500, first_of=9)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    assert_pure(Needle())
    # Of version 1. A change here means that the same config gives other data: raise Needle.version.
    assert digest(Needle().build(0).batch("train", 7, 8)) == "221d6777e14bb222"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_needles": 5000}, r"num_needles = 5000: must be in \[1, 4096\]: keys are distinct"),
        ({"num_queries": 5}, r"num_queries = 5: must be in \[1, num_needles = 4\]"),
        ({"seq_len": 94}, "seq_len = 94: must be at least 95"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Needle(**fields)
