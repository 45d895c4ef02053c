"""Selective copying: labels, purity."""

import pytest

from icl_eval.tasks import SelectiveCopy
from tests.tasks.generated import assert_at_chance, assert_certain, assert_pure, digest


def selected(tokens: list[int]) -> int:
    """Counts the tokens from the copy token on, and the symbols before it."""
    begin = tokens.index(1)
    return [token for token in tokens[:begin] if token][len(tokens) - 1 - begin]


def test_the_example_of_the_docstring() -> None:
    tokens = [0, 7, 0, 0, 4, 0, 1, 0]
    assert [selected(tokens[:7]), selected(tokens)] == [7, 4]


@pytest.mark.parametrize("seq_len", [32, 45, 256])
def test_symbols_come_back_in_order(seq_len: int) -> None:
    task = SelectiveCopy(seq_len=seq_len)
    assert_certain(task, selected)
    batch = task.build(0).batch("train", 0, 16)
    for tokens, targets, scored, position in zip(*(x.tolist() for x in batch[:4]), strict=True):
        asked = [t for t in range(seq_len) if scored[t]]
        assert asked == list(range(seq_len - 16, seq_len))
        assert [targets[t] for t in asked] == [tokens[t - position[t]] for t in asked]
        assert [token for token in tokens if token > 1] == [targets[t] for t in asked]


def test_only_the_own_sequence_tells() -> None:
    assert_at_chance(SelectiveCopy(seq_len=64), selected, own=1)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    assert_pure(SelectiveCopy())
    # Of version 1. A change here means that the same config gives other data: raise SelectiveCopy.version.
    assert digest(SelectiveCopy().build(0).batch("train", 7, 8)) == "b1900703c2bc8fae"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 3}, "vocab_size = 3: must be at least 4"),
        ({"num_symbols": 0}, "num_symbols = 0: must be at least 1"),
        ({"seq_len": 31}, "seq_len = 31: must be at least 32"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelectiveCopy(**fields)
