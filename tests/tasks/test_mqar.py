"""MQAR: labels, optimum, determinism, and what it refuses."""

import hashlib

import numpy as np
import pytest
import torch

from icl_eval.tasks import MQAR


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


def test_shuffled_contexts_tell_nothing() -> None:
    batch = MQAR(seq_len=64, vocab_size=64, num_pairs=8).build(0).batch("train", 0, 512)
    context = batch.tokens.roll(1, dims=0)
    hits = total = 0
    for tokens, query, targets, scored in zip(context, batch.tokens, batch.targets, batch.scored, strict=True):
        pairs = dict(zip(tokens[0:16:2].tolist(), tokens[1:16:2].tolist(), strict=True))
        for key, target in zip(query[scored].tolist(), targets[scored].tolist(), strict=True):
            hits += pairs.get(key) == target
            total += key in pairs
    assert hits / total < 3 / 32


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


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    task = MQAR()
    digest = hashlib.sha256(task.build(0).batch("train", 7, 8).tokens.numpy().tobytes()).hexdigest()
    # Of version 2. A change here means that the same config gives other data: raise MQAR.version.
    assert digest == "deded48aaf0f9564c7701e116811332374eef13a5566ba3afb2352d3cb11820b"
    first, second = task.build(0), task.build(1)
    assert torch.equal(first.batch("heldout", 0, 8).tokens, second.batch("heldout", 0, 8).tokens)
    assert not torch.equal(first.batch("train", 0, 8).tokens, second.batch("train", 0, 8).tokens)
    assert not torch.equal(first.batch("train", 0, 8).tokens, first.batch("heldout", 0, 8).tokens)
    assert not torch.equal(first.batch("train", 0, 8).tokens, first.batch("train", 1, 8).tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vocab_size": 7}, "vocab_size = 7: must be an even number"),
        ({"vocab_size": 32, "num_pairs": 16}, r"num_pairs = 16: must be in \[1, vocab_size / 2 = 16\)"),
        ({"seq_len": 100, "num_pairs": 26}, "seq_len = 100: must be even and at least 104"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MQAR(**fields)


def test_a_misspelt_field_gets_the_nearest_name() -> None:
    with pytest.raises(TypeError, match="MQAR has no field 'num_pair'; did you mean 'num_pairs'"):
        MQAR(num_pair=4)
