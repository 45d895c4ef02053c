"""Train one arm with one seed, measuring on the way; killed at any moment, it resumes to the same numbers."""

import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, set_seed

from icl_eval.budget import Schedule
from icl_eval.checkpoint import Progress, load_checkpoint, save_checkpoint
from icl_eval.experiment import Arm, Experiment
from icl_eval.measure import measure
from icl_eval.positions import append
from icl_eval.run_folder import RunFolder, RunFolderError
from icl_eval.schedule import Leg, learning_rate_at, make_plan
from icl_eval.step import StepResult, prepare, rows_of, warm_up
from icl_eval.step_graphs import StepGraphs
from icl_eval.tasks import Batch, Source

MIN_DOCUMENTS = 4
CALIBRATION_STEPS = 12
LOG_EVERY_STEPS = 10
"""Steps between lines of metrics; losses are read from the device, and checkpoints written, only then."""
BATCH_MAKERS = 2
"""Threads that make training batches."""
BATCHES_AHEAD = 4
"""Training batches made, or in the making, before they are asked for."""


class DivergedError(ArithmeticError):
    """The loss is NaN or infinite, or too many gradients were."""


def train_arm(
    experiment: Experiment,
    arm: Arm,
    seed: int,
    source: Source,
    schedule: Schedule,
    folder: RunFolder,
    accelerator: Accelerator,
    *,
    checkpoint_seconds: float = 30.0,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train, or go on training, and mark the folder done. A loss that is not finite ends the run, and is recorded so.

    Args:
        experiment: for what is common to its arms: how they are measured.
        arm, seed: what is trained.
        source: the arm's task, built for the seed.
        schedule: the arm's budget in steps.
        folder: where ``begin`` has been called already.
        accelerator: device, processes and precision.
        checkpoint_seconds: time between checkpoints.
        on_progress: called with the steps spent and the last mean loss (nats).
    """
    _Trainer(experiment, arm, seed, source, schedule, folder, accelerator, checkpoint_seconds, on_progress).train()


class _Trainer:
    """One run, from its last checkpoint to its end."""

    def __init__(
        self,
        experiment: Experiment,
        arm: Arm,
        seed: int,
        source: Source,
        schedule: Schedule,
        folder: RunFolder,
        accelerator: Accelerator,
        checkpoint_seconds: float,
        on_progress: Callable[[int, float], None],
    ):
        self.arm, self.source, self.folder, self.accelerator = arm, source, folder, accelerator
        self.checkpoint_seconds, self.on_progress = checkpoint_seconds, on_progress
        self.plan = make_plan(arm, schedule.steps, experiment.snapshots)
        self.eval_batch_size = experiment.eval_batch_size
        self.eval_sequences = heldout_sequences(experiment, source)
        self.model, self.optimizer = prepare(arm, seed, accelerator)
        self.step = StepGraphs(self.model, self.optimizer, arm, accelerator)
        set_seed(seed, device_specific=True)
        self.progress = self._load()
        measured = self.plan.measured_before(self.progress.steps_spent)
        self.positions = folder.rewind(self.progress.steps_spent, measured) if accelerator.is_main_process else None
        self.last_checkpoint = time.perf_counter()

    def train(self) -> None:
        self._warm_up()
        try:
            for leg in self.plan.legs_after(self.progress.steps_spent):
                self._train_leg(leg)
            self._save()
            how = {"status": "complete"}
        except DivergedError as error:
            how = {"status": "nan", "reason": f"{error} after step {self.progress.step}"}
        if self.accelerator.is_main_process:
            self.folder.finish(**how, **asdict(self.progress))

    def _warm_up(self) -> None:
        """Meet the shapes of the steps to come, before their time is taken."""
        training = self.arm.training
        batch = self.source.batch("train", 0, training.batch_size)
        if self.progress.step < self.arm.start_steps and training.start_context is not None:
            pieces = batch.cut(training.start_context, training.start_batch_size)
            warm_up(self.model, rows_of(pieces, self.accelerator), self.arm, self.accelerator)
        warm_up(self.model, rows_of(batch, self.accelerator), self.arm, self.accelerator)

    def _train_leg(self, leg: Leg) -> None:
        training, progress = self.arm.training, self.progress
        if leg.restores and progress.step == leg.start:
            self._save()
        results: list[StepResult] = []
        started = time.perf_counter()
        for batch, seconds_waited in prefetched(self.source, progress.step, leg.stop, training.batch_size):
            progress.seconds_waited += seconds_waited
            learning_rate = learning_rate_at(training, self.plan, leg, progress.step)
            if progress.step < self.arm.start_steps and training.start_context is not None:
                batch = batch.cut(training.start_context, training.start_batch_size)
            results.append(self.step(batch, learning_rate))
            progress.step += 1
            progress.steps_spent += 1

            if progress.step % LOG_EVERY_STEPS == 0 or progress.step == leg.stop or progress.step in leg.measured:
                loss, norm, skipped = torch.stack([torch.stack(r) for r in results]).double().cpu().unbind(1)
                results = []
                seconds = time.perf_counter() - started
                progress.seconds += seconds
                progress.seconds_spent += seconds
                progress.skipped_steps += int(skipped.sum())
                mean_norm = norm[skipped == 0].mean().item()
                self._log(leg, loss=loss.mean().item(), learning_rate=learning_rate, gradient_norm=mean_norm)
                if progress.step in leg.measured:
                    self._measure()
                if progress.step < leg.stop:
                    self._save_when_due(leg.spent_before if leg.restores else None)
                started = time.perf_counter()
        if leg.restores:
            fork = self._load(leg.spent_before)
            self.step.forget()
            fork.steps_spent, fork.seconds_spent = progress.steps_spent, progress.seconds_spent
            fork.seconds_waited = progress.seconds_waited
            self.progress = fork
            self._save_when_due()

    def _log(self, leg: Leg, **values: float) -> None:
        progress = self.progress
        if self.accelerator.is_main_process:
            self.folder.log({"branch": leg.branch, **self._seen(), **values, **asdict(progress)})
        self.accelerator.log(values, step=progress.steps_spent)
        self.on_progress(progress.steps_spent, values["loss"])
        if not math.isfinite(values["loss"]):
            raise DivergedError(f"training loss is {values['loss']}")
        if progress.skipped_steps > self.arm.training.max_skipped_steps:
            raise DivergedError(
                f"gradients were not finite in {progress.skipped_steps} steps, which were skipped, and "
                f"max_skipped_steps = {self.arm.training.max_skipped_steps}"
            )

    def _seen(self) -> dict[str, float]:
        """What the model at hand has been trained on."""
        step = self.progress.step
        return {
            "step": step,
            "tokens": self.arm.tokens_after(step),
            "flops": self.arm.flops_after(step),
            "seconds": self.progress.seconds,
        }

    def _measure(self) -> None:
        measurement = measure(
            self.model,
            self.source,
            num_positions=self.arm.task.num_positions,
            num_sequences=self.eval_sequences,
            batch_size=self.eval_batch_size,
            accelerator=self.accelerator,
        )
        if not math.isfinite(measurement.nll_sum.sum()):
            raise DivergedError("held-out loss is not finite")
        heldout_loss = float(measurement.nll_sum.sum() / measurement.count.sum())
        self.accelerator.log({"heldout_loss": heldout_loss}, step=self.progress.steps_spent)
        if self.accelerator.is_main_process:
            self.positions = append(self.positions, measurement, self._seen())
            self.folder.save_positions(self.positions)

    def _save_when_due(self, fork: int | None = None) -> None:
        """Save if the main process finds that it is time; all processes take part in saving."""
        due = torch.tensor([time.perf_counter() - self.last_checkpoint >= self.checkpoint_seconds])
        if broadcast(due.to(self.accelerator.device)).item():
            self._save(fork)

    def _save(self, fork: int | None = None) -> None:
        model, optimizer = self.accelerator.unwrap_model(self.model), self.optimizer.optimizer
        save_checkpoint(self.folder.path / "checkpoint", model, optimizer, self.accelerator, self.progress, fork)
        self.last_checkpoint = time.perf_counter()

    def _load(self, steps_spent: int | None = None) -> Progress:
        """Restore the newest checkpoint, or the one at ``steps_spent``, in all processes."""
        self.accelerator.wait_for_everyone()
        model, optimizer = self.accelerator.unwrap_model(self.model), self.optimizer.optimizer
        progress = load_checkpoint(self.folder.path / "checkpoint", model, optimizer, self.accelerator, steps_spent)
        self.accelerator.wait_for_everyone()
        if steps_spent is not None and progress.steps_spent != steps_spent:
            raise RunFolderError(f"{self.folder.path} has lost the trunk's checkpoint at step {steps_spent}: run again")
        return progress


def calibrate(arm: Arm, source: Source, accelerator: Accelerator) -> float:
    """Median seconds of a training step on this device, from :data:`CALIBRATION_STEPS` steps of a model thrown away."""
    model, optimizer = prepare(arm, 0, accelerator)
    warm_up(model, rows_of(source.batch("train", 0, arm.training.batch_size), accelerator), arm, accelerator)
    step = StepGraphs(model, optimizer, arm, accelerator)
    seconds = []
    start = time.perf_counter()
    for batch, _ in prefetched(source, 0, CALIBRATION_STEPS, arm.training.batch_size):
        step(batch, arm.training.learning_rate).loss.item()
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    measured = torch.tensor(sorted(seconds)[len(seconds) // 2], device=accelerator.device)
    return accelerator.reduce(measured, reduction="mean").item()


def heldout_sequences(experiment: Experiment, source: Source) -> int:
    """How many held-out sequences are measured: as asked, or all there are, in whole batches.

    Raises:
        ValueError: there are fewer than one batch, or fewer than :data:`MIN_DOCUMENTS` documents to resample.
    """
    batch_size = experiment.eval_batch_size
    available = source.num_sequences("heldout")
    asked = experiment.eval_sequences
    if available is not None and available < asked:
        warnings.warn(f"eval_sequences = {asked}, but only {available} held-out sequences exist", stacklevel=2)
        asked = available
    if asked < batch_size:
        raise ValueError(f"eval_batch_size = {batch_size}, but only {available} held-out sequences exist")
    batches = (source.batch("heldout", index, batch_size) for index in range(asked // batch_size))
    documents = np.unique(np.concatenate([batch.document.numpy() for batch in batches]))
    if len(documents) < MIN_DOCUMENTS:
        raise ValueError(
            f"eval_sequences = {asked}: they come from {len(documents)} held-out documents, too few to resample; "
            f"at least {MIN_DOCUMENTS} are needed"
        )
    return asked // batch_size * batch_size


class Prefetched(NamedTuple):
    """A training batch, and the seconds waited for it."""

    batch: Batch
    seconds_waited: float


def prefetched(source: Source, first: int, last: int, batch_size: int) -> Iterator[Prefetched]:
    """Training batches ``first`` to ``last - 1``, in order, made in threads while those before are trained on.

    A batch depends on its index alone, so that neither threads nor resuming change the data.
    """
    indices = iter(range(first, last))
    makers = ThreadPoolExecutor(BATCH_MAKERS)

    def ordered(count: int) -> list[Future[Batch]]:
        return [makers.submit(source.batch, "train", index, batch_size) for index in islice(indices, count)]

    try:
        upcoming = deque(ordered(BATCHES_AHEAD))
        while upcoming:
            start = time.perf_counter()
            batch = upcoming.popleft().result()
            seconds_waited = time.perf_counter() - start
            upcoming.extend(ordered(1))
            yield Prefetched(batch, seconds_waited)
    finally:
        makers.shutdown(cancel_futures=True)
