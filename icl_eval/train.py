"""Train one arm with one seed, measuring on the way; killed at any moment, it resumes to the same numbers."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from icl_eval.budget import Schedule
from icl_eval.checkpoint import Progress, load_checkpoint, save_checkpoint
from icl_eval.experiment import Arm, Experiment
from icl_eval.measure import ScoredLoss, measure
from icl_eval.positions import append
from icl_eval.run_folder import RunFolder, RunFolderError
from icl_eval.schedule import Leg, learning_rate_at, make_plan
from icl_eval.tasks import Batch, Source

MIN_DOCUMENTS = 4
CALIBRATION_STEPS = 12
LOG_EVERY_STEPS = 10
"""Steps between lines of metrics; losses are read from the device, and checkpoints written, only then."""


class DivergedError(ArithmeticError):
    """The loss is NaN or infinite."""


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
        self.model, self.optimizer = _prepare(arm, seed, accelerator)
        self.progress = self._load()
        measured = self.plan.measured_before(self.progress.steps_spent)
        self.positions = folder.rewind(self.progress.steps_spent, measured) if accelerator.is_main_process else None
        self.last_checkpoint = time.perf_counter()

    def train(self) -> None:
        try:
            for leg in self.plan.legs_after(self.progress.steps_spent):
                self._train_leg(leg)
            self._save()
            how = {"status": "complete"}
        except DivergedError as error:
            how = {"status": "nan", "reason": f"{error} after step {self.progress.step}"}
        if self.accelerator.is_main_process:
            self.folder.finish(**how, **asdict(self.progress))

    def _train_leg(self, leg: Leg) -> None:
        training, progress = self.arm.training, self.progress
        if leg.restores and progress.step == leg.start:
            self._save()
        losses: list[torch.Tensor] = []
        norms: list[torch.Tensor] = []
        started = time.perf_counter()
        for batch in _prefetched(self.source, progress.step, leg.stop, training.batch_size):
            learning_rate = learning_rate_at(training, self.plan, leg, progress.step)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            loss, norm = _step(self.model, self.optimizer, batch, self.arm, self.accelerator)
            losses.append(loss)
            norms.append(norm)
            progress.step += 1
            progress.steps_spent += 1

            if progress.step % LOG_EVERY_STEPS == 0 or progress.step == leg.stop or progress.step in leg.measured:
                mean_loss, mean_norm = (torch.stack(values).mean().item() for values in (losses, norms))
                losses, norms = [], []
                seconds = time.perf_counter() - started
                progress.seconds += seconds
                progress.seconds_spent += seconds
                self._log(leg, loss=mean_loss, learning_rate=learning_rate, gradient_norm=mean_norm)
                if progress.step in leg.measured:
                    self._measure()
                if progress.step < leg.stop:
                    self._save_when_due(leg.spent_before if leg.restores else None)
                started = time.perf_counter()
        if leg.restores:
            fork = self._load(leg.spent_before)
            progress.step, progress.seconds = fork.step, fork.seconds
            self._save_when_due()

    def _log(self, leg: Leg, **values: float) -> None:
        progress = self.progress
        if self.accelerator.is_main_process:
            spent = {"steps_spent": progress.steps_spent, "seconds_spent": progress.seconds_spent}
            self.folder.log({"branch": leg.branch, **self._seen(), **values, **spent})
        self.on_progress(progress.steps_spent, values["loss"])
        if not math.isfinite(values["loss"]):
            raise DivergedError(f"training loss is {values['loss']}")

    def _seen(self) -> dict[str, float]:
        """What the model at hand has been trained on."""
        step = self.progress.step
        return {
            "step": step,
            "tokens": step * self.arm.tokens_per_step,
            "flops": step * self.arm.flops_per_step,
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
        if self.accelerator.is_main_process:
            self.positions = append(self.positions, measurement, self._seen())
            self.folder.save_positions(self.positions)

    def _save_when_due(self, fork: int | None = None) -> None:
        if time.perf_counter() - self.last_checkpoint >= self.checkpoint_seconds:
            self._save(fork)

    def _save(self, fork: int | None = None) -> None:
        if self.accelerator.is_main_process:
            model, optimizer = self.accelerator.unwrap_model(self.model), self.optimizer.optimizer
            save_checkpoint(self.folder.path / "checkpoint", model, optimizer, self.progress, fork)
        self.last_checkpoint = time.perf_counter()

    def _load(self, steps_spent: int | None = None) -> Progress:
        """Restore the newest checkpoint, or the one at ``steps_spent``, in all processes."""
        self.accelerator.wait_for_everyone()
        model, optimizer = self.accelerator.unwrap_model(self.model), self.optimizer.optimizer
        progress = load_checkpoint(self.folder.path / "checkpoint", model, optimizer, steps_spent)
        self.accelerator.wait_for_everyone()
        if steps_spent is not None and progress.steps_spent != steps_spent:
            raise RunFolderError(f"{self.folder.path} has lost the trunk's checkpoint at step {steps_spent}: run again")
        return progress


def calibrate(arm: Arm, source: Source, accelerator: Accelerator) -> float:
    """Median seconds of a training step on this device, from :data:`CALIBRATION_STEPS` steps of a model thrown away."""
    model, optimizer = _prepare(arm, 0, accelerator)
    seconds = []
    start = time.perf_counter()
    for batch in _prefetched(source, 0, CALIBRATION_STEPS, arm.training.batch_size):
        loss, _ = _step(model, optimizer, batch, arm, accelerator)
        loss.item()
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    measured = torch.tensor(sorted(seconds)[len(seconds) // 2], device=accelerator.device)
    return accelerator.reduce(measured, reduction="mean").item()


def _prepare(arm: Arm, seed: int, accelerator: Accelerator) -> tuple[torch.nn.Module, AcceleratedOptimizer]:
    """The arm's model, initialised from the seed, and its optimiser, on the accelerator's device and processes."""
    model = ScoredLoss(arm.model.build(seed))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": arm.training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=arm.training.learning_rate, betas=arm.training.betas)
    return accelerator.prepare(model, optimizer)


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


def _prefetched(source: Source, first: int, last: int, batch_size: int) -> Iterator[Batch]:
    """Training batches ``first`` to ``last - 1``, each made while the one before is trained on."""
    with ThreadPoolExecutor(max_workers=1) as maker:
        upcoming = maker.submit(source.batch, "train", first, batch_size)
        for index in range(first + 1, last + 1):
            batch = upcoming.result()
            upcoming = maker.submit(source.batch, "train", index, batch_size)
            yield batch


def _step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    arm: Arm,
    accelerator: Accelerator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One optimiser step; returns the mean loss over the global batch's scored tokens and the gradient norm, unread.

    Every process takes its rows of the same global batch, so that the number of processes does not change the data.
    """
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    tokens, targets, scored = (x[mine].to(accelerator.device, non_blocking=True) for x in batch[:3])
    inputs = () if batch.inputs is None else (batch.inputs[mine].to(accelerator.device, non_blocking=True),)
    nll, _ = model(tokens, targets, *inputs)
    loss = (nll * scored).sum() / batch.scored.sum().item()
    accelerator.backward(loss * accelerator.num_processes)
    norm = accelerator.clip_grad_norm_(model.parameters(), arm.training.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return accelerator.reduce(loss.detach(), reduction="sum"), norm.detach()
