"""Batches made ahead of training: in order, whatever the threads do, and waited for only where they are slow."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from icl_eval.tables import waiting
from icl_eval.tasks import Batch, Markov
from icl_eval.tasks.base import GeneratedSource
from icl_eval.train import BATCHES_AHEAD, prefetched


class Paced(GeneratedSource):
    """Batches that take a given time, an odd one ten times as long where they are to overtake one another."""

    def __init__(self, seconds: float, *, uneven: bool = False, fails_at: int | None = None):
        super().__init__(Markov(seq_len=8), 0)
        self.seconds, self.uneven, self.fails_at = seconds, uneven, fails_at
        self.made: list[int] = []

    def batch(self, split, index, batch_size) -> Batch:
        time.sleep(self.seconds * (10 if self.uneven and index % 2 else 1))
        if index == self.fails_at:
            raise OSError("the disk is gone")
        self.made.append(index)
        return super().batch(split, index, batch_size)


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")}


def test_batches_come_once_and_in_order_though_some_overtake_others() -> None:
    source = Paced(0.001, uneven=True)
    batches = [batch for batch, _ in prefetched(source, 3, 15, 2)]
    assert source.made != sorted(source.made)
    assert sorted(source.made) == list(range(3, 15))
    for index, batch in enumerate(batches, start=3):
        assert torch.equal(batch.tokens, Markov(seq_len=8).build(0).batch("train", index, 2).tokens)


def test_batches_are_made_ahead_of_being_asked_for() -> None:
    source = Paced(0)
    batches = prefetched(source, 0, 100, 2)
    next(batches)
    deadline = time.monotonic() + 60
    while len(source.made) < 1 + BATCHES_AHEAD and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(source.made) == 1 + BATCHES_AHEAD
    batches.close()


def test_the_time_until_a_batch_is_there_is_told() -> None:
    (_, first), (_, second) = prefetched(Paced(0.2, uneven=True), 0, 2, 2)
    assert first >= 0.19
    assert second >= 1.7  # made for 2 s, of which it was waited for while the first was


@pytest.mark.parametrize("last", [0, 1, BATCHES_AHEAD - 1])
def test_fewer_batches_than_are_made_ahead(last: int) -> None:
    assert len(list(prefetched(Paced(0), 0, last, 2))) == last


def test_a_source_that_fails_ends_training_with_its_own_error() -> None:
    before = threads()
    with pytest.raises(OSError, match="the disk is gone"):
        list(prefetched(Paced(0, fails_at=5), 0, 100, 2))
    assert threads() == before


def test_training_that_ends_early_leaves_no_thread_and_makes_no_more() -> None:
    before, source = threads(), Paced(0.01)
    batches = prefetched(source, 0, 1000, 2)
    next(batches)
    batches.close()
    assert threads() == before
    assert len(source.made) <= 1 + BATCHES_AHEAD


def test_the_longest_wait_is_said_of_runs_that_recorded_it() -> None:
    def run(name: str, **status: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, seed=1, status={"seconds_spent": 50.0, **status})

    runs = [run("a", seconds_waited=0.1), run("b", seconds_waited=1.0), run("old")]
    assert waiting(runs) == ["Waiting for data took at most 2.0% of a run's training time (b, seed 1)."]
    assert waiting(runs[2:]) == []
