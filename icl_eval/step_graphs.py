"""Training steps as CUDA graphs: the host starts the hundreds of kernels of a step at once, not one by one."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from icl_eval.experiment import Arm
from icl_eval.step import Rows, StepResult, rows_of, train_step
from icl_eval.tasks import Batch


class Recorded(NamedTuple):
    """A recorded step.

    Attributes:
        replay: takes it.
        rows: the tensors that it reads.
        result: the tensors that it writes.
    """

    replay: Callable[[], None]
    rows: Rows
    result: StepResult


class StepGraphs:
    """Optimiser steps of a run. Those of a compiled model on one GPU are recorded, one graph for every shape of a
    batch, and replayed: the same kernels on the same tensors, so the numbers are those of steps taken one by one.

    The first step of a shape, which must have been compiled (:func:`icl_eval.step.warm_up`), is taken as it is, so that
    what is made once is made outside the graph, and shows whether anything waits for the device, which a graph cannot.
    A model whose steps cannot be recorded is named in a warning and trained without. What a module does on the host
    happens once, when its step is recorded.
    """

    def __init__(self, model: nn.Module, optimizer: AcceleratedOptimizer, arm: Arm, accelerator: Accelerator):
        self.model, self.optimizer, self.arm, self.accelerator = model, optimizer, arm, accelerator
        self.recording = recordable(arm, accelerator)
        self.learning_rate = torch.zeros((), device=accelerator.device)
        self.forget()

    def forget(self) -> None:
        """Record anew: the optimiser's moments have been replaced."""
        self.met: set[torch.Size] = set()
        self.recorded: dict[torch.Size, Recorded] = {}

    def __call__(self, batch: Batch, learning_rate: float) -> StepResult:
        """Train on a global batch."""
        rows, shape = rows_of(batch, self.accelerator), batch.tokens.shape
        if self.recording:
            self.learning_rate.fill_(learning_rate)
            try:
                if shape not in self.met:
                    return self._first_step(rows, shape)
                if shape not in self.recorded:
                    replay, result = record(lambda: self._step(rows, self.learning_rate))
                    self.recorded[shape] = Recorded(replay, rows, result)
            except RuntimeError as error:
                reason = str(error).partition("\n")[0]
            else:
                return self._replay(rows, shape)
            # here, where the error no longer keeps what the step had allocated; no step has been taken
            self.recording = False
            self.forget()
            self.optimizer.zero_grad(set_to_none=True)
            warnings.warn(f"steps of arm {self.arm.name!r} cannot be recorded as a CUDA graph: {reason}", stacklevel=2)
        return self._step(rows, learning_rate)

    def _first_step(self, rows: Rows, shape: torch.Size) -> StepResult:
        self.recorded.clear()  # training goes on to longer sequences and does not return
        with no_waiting():
            result = self._step(rows, self.learning_rate)
        self.met.add(shape)
        return result

    def _replay(self, rows: Rows, shape: torch.Size) -> StepResult:
        replay, kept, result = self.recorded[shape]
        for old, new in zip(kept.tensors, rows.tensors, strict=True):
            old.copy_(new)
        replay()
        return StepResult(*(x.clone() for x in result))

    def _step(self, rows: Rows, learning_rate: float | Tensor) -> StepResult:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return train_step(self.model, self.optimizer, rows, self.arm, self.accelerator)


def recordable(arm: Arm, accelerator: Accelerator) -> bool:
    """Whether an arm's steps are to be recorded. Where layers are recomputed they cannot be: torch then reads the state
    of its random generator."""
    training = arm.training
    return (
        training.compile
        and not training.activation_checkpointing
        and accelerator.num_processes == 1
        and accelerator.device.type == "cuda"
    )


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raises a RuntimeError where the host would wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def record(step: Callable[[], StepResult]) -> tuple[Callable[[], None], StepResult]:
    """A CUDA graph's replay of ``step``, which is not taken, and the tensors that it writes.

    Raises:
        RuntimeError: the step does something that a graph cannot hold.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with (
        torch.cuda.stream(stream),  # which a failed recording would otherwise leave current
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        result = step()
    return graph.replay, result
