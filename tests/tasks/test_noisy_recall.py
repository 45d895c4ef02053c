"""Recall in noise: labels, share of noise, purity."""

import pytest

from icl_eval.tasks import NoisyRecall
from tests.tasks.generated import assert_at_chance, assert_certain, assert_pure, digest


def recalled(tokens: list[int]) -> int:
    """The value that followed this key before, or the first token in a value's place."""
    *before, key = tokens
    return next((value for k, value in zip(before[::2], before[1::2], strict=True) if k == key), tokens[1])


def test_the_example_of_the_docstring() -> None:
    tokens = [1, 4, 8, 7, 0, 4, 1, 4, 0, 4]
    assert [recalled(tokens[:7]), recalled(tokens[:9])] == [4, 4]


@pytest.mark.parametrize("noise", [0.0, 0.2, 0.8])
def test_keys_that_come_back_keep_their_values(noise: float) -> None:
    task = NoisyRecall(seq_len=128, noise=noise)
    assert_certain(task, recalled)
    batch = task.build(0).batch("train", 0, 128)
    assert (batch.tokens >= 16).double().mean().item() == pytest.approx(noise, abs=0.02)
    for tokens, scored, position in zip(
        batch.tokens.tolist(), batch.scored.tolist(), batch.position.tolist(), strict=True
    ):
        for t in range(0, 128, 2):
            last = max((s for s in range(0, t, 2) if tokens[s] == tokens[t]), default=None)
            assert scored[t] == (tokens[t] < 8 and last is not None)
            assert not scored[t + 1]
            assert not scored[t] or position[t] == t - last


def test_only_the_own_mapping_tells() -> None:
    assert_at_chance(NoisyRecall(), recalled, own=1, num_sequences=64)


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    assert_pure(NoisyRecall())
    # Of version 1. A change here means that the same config gives other data: raise NoisyRecall.version.
    assert digest(NoisyRecall().build(0).batch("train", 7, 8)) == "c4bdfb12c1be2bd1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_keys": 0}, "num_keys = 0: must be at least 1"),
        ({"num_values": 1}, "num_values = 1: must be at least 2"),
        ({"noise": 1.0}, r"noise = 1.0: must be in \[0, 1\)"),
        ({"num_noise_tokens": 0}, "num_noise_tokens = 0: must be at least 1, or 0 without noise"),
        ({"seq_len": 13}, "seq_len = 13: must be even and at least 4"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NoisyRecall(**fields)
