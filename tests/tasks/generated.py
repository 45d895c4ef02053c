"""What every generated task's batches must be, whatever the task."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch

from icl_eval.tasks import Batch
from icl_eval.tasks.base import GeneratedTask


def digest(batch: Batch) -> str:
    """Hash of all that a model is shown and scored on."""
    whole = hashlib.sha256()
    for field in batch:
        if field is not None:
            whole.update(field.numpy().tobytes())
    return whole.hexdigest()[:16]


def assert_pure(task: GeneratedTask) -> None:
    """Seeds, splits and batches differ; held-out sequences are the same for all seeds and batch sizes."""
    first, second = task.build(0), task.build(1)
    assert digest(first.batch("train", 3, 8)) == digest(task.build(0).batch("train", 3, 8))
    assert digest(first.batch("heldout", 0, 8)) == digest(second.batch("heldout", 0, 8))
    others = [second.batch("train", 0, 8), first.batch("heldout", 0, 8), first.batch("train", 1, 8)]
    assert (
        len({digest(batch._replace(document=others[0].document)) for batch in (*others, first.batch("train", 0, 8))})
        == 4
    )
    whole, part = first.batch("heldout", 0, 12), first.batch("heldout", 2, 4)
    for all_rows, rows in zip(whole, part, strict=True):
        assert all_rows is None or torch.equal(all_rows[8:], rows)
    assert (whole.position[whole.scored] < task.num_positions).all()
    assert (whole.position >= 0).all()


Predictor = Callable[[list[int]], int]
"""The token that follows some tokens, or the best guess."""


def assert_certain(task: GeneratedTask, predict: Predictor, num_sequences: int = 64) -> None:
    """The predictor, which is shown no more than a model is, makes no mistake: its loss is 0, and so is the optimum."""
    batch = task.build(0).batch("heldout", 0, num_sequences)
    assert batch.scored.any(dim=1).all()
    for b, t in batch.scored.nonzero().tolist():
        assert predict(batch.tokens[b, : t + 1].tolist()) == batch.targets[b, t], (b, t)
    optimum = task.optimum(batch.position[batch.scored].numpy())
    assert optimum is not None
    assert (optimum == 0).all()


def assert_at_chance(
    task: GeneratedTask, predict: Predictor, own: int, num_sequences: int = 256, first_of: int | None = None
) -> None:
    """With the context of another sequence, and ``own`` last tokens of its own, the predictor is at chance.

    So is every guess that looks at nothing. Errors are over sequences, whose targets may depend on each other. Where
    answers are numbers whose first digit is one of ``first_of``, it alone is looked at.
    """
    batch = task.build(0).batch("train", 0, num_sequences)
    tokens, foreign = batch.tokens.tolist(), batch.tokens.roll(1, 0).tolist()
    scored = batch.scored.numpy()
    chance = np.exp(-task.chance())
    if first_of is not None:
        scored[:, 1:] &= ~scored[:, :-1]
        chance = 1 / first_of
    row, column = scored.nonzero()
    target = batch.targets[row, column].numpy()
    seen = [foreign[b][: t + 1 - own] + tokens[b][t + 1 - own : t + 1] for b, t in zip(row, column, strict=True)]
    share = np.zeros((num_sequences, task.num_tokens + 1))
    np.add.at(share, (row, target), 1)
    share[:, -1] = np.bincount(row, [predict(s) == y for s, y in zip(seen, target, strict=True)])
    share /= np.bincount(row)[:, None]
    error = share.std(axis=0) / num_sequences**0.5
    assert (share.mean(axis=0) < chance + 5 * error).all()
