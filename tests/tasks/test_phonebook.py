"""Phone book: numbers looked up in the text, names without repetition, purity."""

import re

import numpy as np
import pytest

from icl_eval.tasks import Phonebook
from icl_eval.tasks.phonebook import VOCABULARY
from tests.tasks.generated import assert_at_chance, assert_certain, assert_pure, digest

ENTRY = re.compile(r"(\w+ \w+): ([6-9]\d{9})")


def looked_up(text: str) -> str:
    """The next digit of the number of the last line's name; of the book's first number where there is none."""
    name, said = text.rsplit("\n", 1)[-1].split(": ")
    entries = ENTRY.findall(text)
    return dict(entries).get(name, entries[0][1] if entries else "6000000000")[len(said)]


def predict(tokens: list[int]) -> int:
    return VOCABULARY.pieces.index(looked_up(VOCABULARY.render(tokens)))


def test_the_example_of_the_docstring() -> None:
    assert looked_up("Alice King: 6031179042\nKaren Ford: 8819200537\nAlice King: 603") == "1"


@pytest.mark.parametrize(
    "task", [Phonebook(), Phonebook(num_queries=1, seq_len=27), Phonebook(seq_len=500, num_queries=17)],
    ids=["default", "one entry", "all asked"],
)  # fmt: skip
def test_numbers_are_looked_up_and_names_do_not_repeat(task: Phonebook) -> None:
    assert_certain(task, predict, num_sequences=16)
    batch = task.build(0).batch("train", 0, 8)
    for row, position, scored in zip(batch.tokens, batch.position, batch.scored, strict=True):
        lines = VOCABULARY.render(row.tolist()).strip("\n").split("\n")
        book, questions = lines[: task.num_entries], lines[task.num_entries :]
        entries = [ENTRY.fullmatch(line) for line in book]
        assert len({e[1] for e in entries}) == len({e[2] for e in entries}) == task.num_entries
        assert set(questions[:-1]) <= set(book)
        assert len(set(questions)) == len(questions) == task.num_queries
        for t in np.flatnonzero(scored.numpy())[:-1]:
            assert row[t + 1] == row[t + 1 - position[t]]


def test_only_the_own_book_tells() -> None:
    assert_at_chance(Phonebook(num_queries=1), predict, own=3, num_sequences=500, first_of=4)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    assert_pure(Phonebook())
    # Of version 1. A change here means that the same config gives other data: raise Phonebook.version.
    assert digest(Phonebook().build(0).batch("train", 7, 8)) == "5e79b9dba256a166"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_queries": 0}, "num_queries = 0: must be at least 1"),
        ({"seq_len": 82}, "seq_len = 82: must be at least 83"),
        ({"seq_len": 300_000}, "seq_len = 300000: must be so short that 16384 distinct names suffice"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Phonebook(**fields)
