"""What every generated task's batches must be, whatever the task."""

import hashlib

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
