"""MQAR: labels, optimum, determinism, and what it refuses."""

import numpy as np
import pytest
import torch

from icl_eval.tasks import MQAR
from tests.tasks.generated import Predictor, assert_at_chance, assert_certain, assert_pure, digest


def test_every_label_is_the_value_of_its_key() -> None:
    task = MQAR(seq_len=64, vocab_size=40, num_pairs=9)
    batch = task.build(0).batch("train", 3, 16)
    for tokens, targets, scored, position in zip(*(x.tolist() for x in batch[:4]), strict=True):
        pairs = dict(zip(tokens[0:18:2], tokens[1:18:2], strict=True))
        assert len(pairs) == len(set(pairs.values())) == 9
        assert all(1 <= key < 20 <= value < 40 for key, value in pairs.items())
        queried = [t for t in range(64) if scored[t]]
        assert sorted(tokens[t] for t in queried) == sorted(pairs)
        for t in queried:
            assert t >= 18
            assert t % 2 == 0
            assert targets[t] == pairs[tokens[t]]
            assert tokens[t - position[t]] == tokens[t]
            assert t - position[t] < 18


def test_chance_and_optimum_bound_their_predictors() -> None:
    task = MQAR(seq_len=64, vocab_size=64, num_pairs=16)
    batch = task.build(0).batch("heldout", 0, 256)
    targets = batch.targets[batch.scored]
    frequency = torch.bincount(targets, minlength=64)[32:] / len(targets)
    assert -(frequency * frequency.log()).sum().item() == pytest.approx(task.chance(), abs=0.01)
    assert (task.optimum(np.arange(64)) == 0).all()
    assert task.state_bits == 16 * 5


def answered(task: MQAR) -> Predictor:
    """The last value written for the key; for a key never written, the first value."""

    def predict(tokens: list[int]) -> int:
        half, end = task.vocab_size // 2, 2 * (task.num_pairs + task.num_rewrites)
        if task.min_pairs is not None:
            end = next(t for t in range(0, len(tokens), 2) if t + 1 == len(tokens) or tokens[t + 1] < half)
        written = dict(zip(tokens[0:end:2], tokens[1:end:2], strict=True))
        return written.get(tokens[-1], tokens[1])

    return predict


FORGETTING = MQAR(seq_len=128, vocab_size=64, num_pairs=8, num_rewrites=20)
MIXED = MQAR(seq_len=256, num_pairs=32, min_pairs=2, num_rewrites=5, random_filler=False, axis="pairs")


@pytest.mark.parametrize("task", [MQAR(), FORGETTING, MIXED], ids=["default", "forgetting", "mixed"])
def test_remembering_the_last_value_is_all_it_takes(task: MQAR) -> None:
    assert_certain(task, answered(task), num_sequences=32)


def test_the_examples_of_the_docstring() -> None:
    small = {"vocab_size": 16, "num_pairs": 2}
    kept, rewritten = MQAR(seq_len=10, **small), MQAR(seq_len=10, **small, num_rewrites=1)
    assert [answered(kept)(row) for row in ([3, 12, 5, 9, 7, 2, 5], [3, 12, 5, 9, 7, 2, 5, 1, 3])] == [9, 12]
    assert [answered(rewritten)(row) for row in ([3, 12, 5, 9, 3, 15, 5], [3, 12, 5, 9, 3, 15, 5, 1, 3])] == [9, 15]


def test_old_values_are_wrong_and_distance_counts_from_the_last() -> None:
    batch = FORGETTING.build(0).batch("train", 0, 64)
    stale = 0
    for b, t in batch.scored.nonzero().tolist():
        tokens, key = batch.tokens[b, :56].tolist(), batch.tokens[b, t]
        values = [tokens[s + 1] for s in range(0, 56, 2) if tokens[s] == key]
        assert len(set(values)) == len(values)
        assert values[-1] == batch.targets[b, t]
        assert tokens[t - batch.position[b, t] + 1] == values[-1]
        stale += len(values) > 1
    assert stale / batch.scored.sum() > 0.8


def test_the_axis_of_pairs_counts_them() -> None:
    batch = MIXED.build(0).batch("train", 0, 300)
    queried = batch.scored.sum(1)
    assert set(queried.tolist()) <= set(range(2, 33))
    assert {2, 32} < set(queried.tolist())
    row, column = batch.scored.nonzero(as_tuple=True)
    assert torch.equal(batch.position[row, column], queried[row])
    assert MIXED.num_positions == 33


@pytest.mark.parametrize(
    "task", [MQAR(seq_len=64, vocab_size=64, num_pairs=8), FORGETTING], ids=["plain", "forgetting"]
)
def test_shuffled_contexts_tell_nothing(task: MQAR) -> None:
    assert_at_chance(task, answered(task), own=1)


def test_queries_move_early_with_query_decay() -> None:
    mean = [
        MQAR(seq_len=256, num_pairs=16, query_decay=decay)
        .build(0)
        .batch("train", 0, 64)
        .scored.float()
        .argmax(1)
        .float()
        .mean()
        for decay in (0.01, 1.0)
    ]
    assert mean[0] + 2 < mean[1]


@pytest.mark.parametrize(
    ("task", "golden"), [(MQAR(), "f33c4a3b4edd3e8e"), (FORGETTING, "537b1c36f560c066"), (MIXED, "c665bbb511b9c470")]
)
def test_batches_depend_on_seed_split_and_index_alone(task: MQAR, golden: str) -> None:
    assert_pure(task)
    # Of version 2. A change here means that the same config gives other data: raise MQAR.version.
    assert digest(task.build(0).batch("train", 7, 8)) == golden


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 7}, "vocab_size = 7: must be an even number"),
        ({"vocab_size": 32, "num_pairs": 16}, r"num_pairs = 16: must be in \[1, vocab_size / 2 = 16\)"),
        ({"seq_len": 100, "num_pairs": 26}, "seq_len = 100: must be even and at least 104"),
        ({"seq_len": 128, "num_rewrites": 1}, "seq_len = 128: must be even and at least 130"),
        ({"min_pairs": 33}, r"min_pairs = 33: must be None or in \[1, num_pairs = 32\]"),
        ({"min_pairs": 3}, "random_filler = True: must be False with min_pairs = 3"),
        ({"num_rewrites": 97}, r"num_rewrites = 97: must be in \[0, vocab_size / 2 - num_pairs = 96\]"),
        ({"axis": "time"}, "axis = 'time'"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MQAR(**fields)


def test_a_misspelt_field_gets_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="MQAR has no field 'num_pair'; did you mean 'num_pairs'"):
        MQAR(num_pair=4)
