"""Induction: labels, unique triggers, purity."""

import pytest

from icl_eval.tasks import Induction
from tests.tasks.generated import Predictor, assert_at_chance, assert_certain, assert_pure, digest


def induction(n: int) -> Predictor:
    """What followed the last n tokens the first time; without such a time, what follows the last trigger before."""

    def predict(tokens: list[int]) -> int:
        trigger = tokens[-n:]
        for t in range(len(tokens) - n):
            if tokens[t : t + n] == trigger:
                return tokens[t + n]
        return tokens[0]

    return predict


def test_the_example_of_the_docstring() -> None:
    assert induction(2)([2, 0, 3, 5, 4, 1, 0, 3, 1, 5, 4]) == 1


@pytest.mark.parametrize(
    "task",
    [
        Induction(),
        Induction(num_triggers=1, seq_len=40),
        Induction(vocab_size=8, num_triggers=9, trigger_length=2, seq_len=54),
    ],
    ids=["default", "classical", "bigrams without a token to spare"],
)
def test_triggers_stand_twice_and_are_followed_by_one_symbol(task: Induction) -> None:
    assert_certain(task, induction(task.trigger_length))
    n, half = task.trigger_length, task.vocab_size // 2
    batch = task.build(0).batch("train", 0, 16)
    for tokens, targets, scored, position in zip(*(x.tolist() for x in batch[:4]), strict=True):
        asked = [t for t in range(task.seq_len) if scored[t]]
        assert len({tuple(tokens[t - n + 1 : t + 1]) for t in asked}) == len(asked) == task.num_triggers
        assert sum(token >= half for token in tokens) == 2 * n * task.num_triggers
        for t in asked:
            assert tokens[t - position[t] - n + 1 : t - position[t] + 1] == tokens[t - n + 1 : t + 1]
            assert tokens[t - position[t] + 1] == targets[t] < half


def test_only_the_own_sequence_tells() -> None:
    assert_at_chance(Induction(vocab_size=16, num_triggers=8), induction(1), own=1)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    assert_pure(Induction())
    # Of version 1. A change here means that the same config gives other data: raise Induction.version.
    assert digest(Induction().build(0).batch("train", 7, 8)) == "216ba8f4f95adbd2"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 9}, "vocab_size = 9: must be an even number"),
        ({"vocab_size": 8, "num_triggers": 5}, r"num_triggers = 5: must be in \[1, 4\]"),
        ({"trigger_length": 0}, r"trigger_length = 0: must be in \[1, 8\]"),
        ({"seq_len": 31}, "seq_len = 31: must be at least 32"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Induction(**fields)
