"""Markov chains: the Bayes loss against slow counting and measured values, and purity."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from icl_eval.tasks.markov import Markov


def counted_loss(tokens: list[int], targets: list[int], K: int, order: int) -> list[float]:
    """Loss of add-one counting on one sequence, from the definition."""
    string = [*tokens, targets[-1]]
    losses = [float(np.log(K))] * (order - 1)
    for t in range(order, len(string)):
        context = string[t - order : t]
        after = [string[s] for s in range(order, t) if string[s - order : s] == context]
        losses.append(-float(np.log((after.count(string[t]) + 1) / (len(after) + K))))
    return losses


def test_the_example_of_the_docstring() -> None:
    assert np.exp(-np.array(counted_loss([0, 1, 1, 0], [1, 1, 0, 1], 2, 1))) == pytest.approx(
        [1 / 2, 1 / 2, 1 / 3, 2 / 3]
    )


@pytest.mark.parametrize("order", [1, 2])
def test_counting_meets_the_optimum_and_shuffled_contexts_do_not(order: int) -> None:
    task = Markov(num_states=3, order=order, seq_len=60)
    batch = task.build(0).batch("heldout", 0, 600)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    rows = list(zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True))
    loss = np.array([counted_loss(*row, 3, order) for row in rows])
    optimum, error = task.optimum(batch.position[0].numpy()), task.optimum_error(batch.position[0].numpy())
    deviation = np.abs(loss.mean(0) - optimum) / np.hypot(loss.std(0) / np.sqrt(600), error).clip(1e-9)
    assert deviation.max() < 4.5
    assert abs(loss.mean() - optimum.mean()) < 4 * loss.mean(1).std() / np.sqrt(600)
    other = [counted_loss(a[0][:-10] + b[0][-10:], b[1], 3, order)[-9:] for a, b in pairwise(rows)]
    assert np.mean(other) > task.chance()


@pytest.mark.parametrize(
    ("states", "position", "loss", "tolerance"),
    [(2, 100, 0.495, 0.025), (3, 100, 0.853, 0.025), (8, 1000, 1.746, 0.01), (8, 4096, 1.725, 0.01)],
)
def test_optimum_is_near_the_values_measured_elsewhere(
    states: int, position: int, loss: float, tolerance: float
) -> None:
    task = Markov(num_states=states, seq_len=position)
    assert task.optimum(np.array([position]))[0] == pytest.approx(loss, abs=tolerance)
    assert task.optimum(np.array([0, 1])) == pytest.approx(task.chance())


def test_batches_depend_on_seed_split_and_index_alone() -> None:
    task = Markov()
    digest = hashlib.sha256(task.build(0).batch("train", 7, 8).tokens.numpy().tobytes()).hexdigest()
    # Of version 2. A change here means that the same config gives other data: raise Markov.version.
    assert digest == "b4141574f2fbd1d40b92b127fc633013c70e99d3c99f8ff61abf15573c65606e"
    first, second = task.build(0), task.build(1)
    assert torch.equal(first.batch("heldout", 0, 8).tokens, second.batch("heldout", 0, 8).tokens)
    assert not torch.equal(first.batch("train", 0, 8).tokens, second.batch("train", 0, 8).tokens)
    assert not torch.equal(first.batch("train", 0, 8).tokens, first.batch("heldout", 0, 8).tokens)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_states": 1}, r"num_states = 1: must be in \[2, 64\]"),
        ({"order": 3}, "order = 3: must be 1 or 2"),
        ({"order": 2, "seq_len": 2}, "seq_len = 2: must be more than order = 2"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Markov(**fields)
