"""Copying: labels, lengths, purity."""

import numpy as np
import pytest

from icl_eval.tasks import StringCopy
from tests.tasks.generated import assert_at_chance, assert_certain, assert_pure, digest


def copied(tokens: list[int]) -> int:
    """Counts from the separator."""
    return tokens[len(tokens) - 1 - tokens.index(1)]


def test_the_example_of_the_docstring() -> None:
    string = [7, 2, 5, 1, 7, 2, 5, 0]
    assert [copied(string[: t + 1]) for t in (3, 4, 5)] == [7, 2, 5]


def test_strings_are_copied_whole() -> None:
    task = StringCopy(seq_len=33, vocab_size=9, min_length=3)
    assert_certain(task, copied)
    batch = task.build(0).batch("train", 0, 200)
    lengths = set()
    for tokens, targets, scored, position in zip(*(x.tolist() for x in batch[:4]), strict=True):
        length = tokens.index(1)
        lengths.add(length)
        assert [t for t in range(33) if scored[t]] == list(range(length, 2 * length))
        assert tokens[:length] == targets[length : 2 * length]
        assert {position[t] for t in range(33) if scored[t]} == {length + 1}
        assert set(tokens[2 * length + 1 :]) <= {0}
        assert min(tokens[:length]) >= 2
    assert lengths == set(range(3, 17))


def test_lengths_are_log_uniform() -> None:
    batch = StringCopy(seq_len=256, min_length=8).build(0).batch("train", 0, 4000)
    length = batch.scored.sum(1).numpy()
    octaves = np.histogram(length, [8, 16, 32, 64, 128])[0] / 4000
    assert octaves == pytest.approx([0.25] * 4, abs=0.03)


def test_only_the_own_string_tells() -> None:
    assert_at_chance(StringCopy(seq_len=32, vocab_size=18, min_length=16), copied, own=1)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    assert_pure(StringCopy())
    # Of version 1. A change here means that the same config gives other data: raise StringCopy.version.
    assert digest(StringCopy().build(0).batch("train", 7, 8)) == "ca1515e4b45623ff"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 3}, "vocab_size = 3: must be at least 4"),
        ({"seq_len": 10, "min_length": 6}, r"min_length = 6: must be in \[1, seq_len // 2 = 5\]"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StringCopy(**fields)
