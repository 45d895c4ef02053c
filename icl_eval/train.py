"""Train one arm with one seed, measuring on the way; killed at any moment, it resumes to the same numbers."""

import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

from icl_eval.budget import Schedule
from icl_eval.checkpoint import load_checkpoint, save_checkpoint
from icl_eval.experiment import Arm, Experiment
from icl_eval.measure import ScoredLoss, measure
from icl_eval.positions import append
from icl_eval.run_folder import RunFolder, RunFolderError
from icl_eval.tasks import Batch, Source

MIN_DOCUMENTS = 4
CALIBRATION_STEPS = 12
LOG_EVERY_STEPS = 10
"""Steps between lines of metrics; losses are read from the device, and checkpoints written, only then."""


class DivergedError(ArithmeticError):
    """The loss is NaN or infinite."""


def snapshot_steps(steps: int, snapshots: int) -> list[int]:
    """Log-spaced steps to measure after, ``steps`` included, over the last seven octaves of the budget."""
    spaced = np.geomspace(max(1.0, steps / 128), steps, snapshots) if snapshots > 1 else [steps]
    return sorted({round(step) for step in spaced})


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
        on_progress: called with the steps taken and the last mean loss (nats).
    """
    training = arm.training
    model, optimizer = _prepare(arm, seed, accelerator)
    bare, bare_optimizer = accelerator.unwrap_model(model), optimizer.optimizer
    step, seconds = load_checkpoint(folder.path / "checkpoint", bare, bare_optimizer)
    accelerator.wait_for_everyone()
    positions = folder.rewind(step) if accelerator.is_main_process else None
    num_sequences = heldout_sequences(experiment, source)
    measure_after = set(snapshot_steps(schedule.steps, experiment.snapshots))
    kept = set() if positions is None else set(positions.step.tolist())
    if accelerator.is_main_process and kept != {s for s in measure_after if s <= step}:
        raise RunFolderError(f"{folder.path} lacks measurements before step {step}: remove it to start again")

    def spent() -> dict[str, float]:
        return {
            "step": step,
            "tokens": step * arm.tokens_per_step,
            "flops": step * arm.flops_per_step,
            "seconds": seconds,
        }

    losses: list[torch.Tensor] = []
    norms: list[torch.Tensor] = []
    started = last_checkpoint = time.perf_counter()
    try:
        for batch in _prefetched(source, step, schedule.steps, training.batch_size):
            learning_rate = training.learning_rate_at(step, schedule.steps, arm.tokens_per_step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            loss, norm = _step(model, optimizer, batch, arm, accelerator)
            losses.append(loss)
            norms.append(norm)
            step += 1

            if step % LOG_EVERY_STEPS == 0 or step == schedule.steps or step in measure_after:
                mean_loss, mean_norm = (torch.stack(values).mean().item() for values in (losses, norms))
                losses, norms = [], []
                now = time.perf_counter()
                seconds, started = seconds + now - started, now
                row = {**spent(), "loss": mean_loss, "learning_rate": learning_rate, "gradient_norm": mean_norm}
                if accelerator.is_main_process:
                    folder.log(row)
                on_progress(step, mean_loss)
                if not math.isfinite(mean_loss):
                    raise DivergedError(f"training loss is {mean_loss}")
                if step in measure_after:
                    measurement = measure(
                        model,
                        source,
                        num_positions=arm.task.num_positions,
                        num_sequences=num_sequences,
                        batch_size=experiment.eval_batch_size,
                        accelerator=accelerator,
                    )
                    if not math.isfinite(measurement.nll_sum.sum()):
                        raise DivergedError("held-out loss is not finite")
                    if accelerator.is_main_process:
                        positions = append(positions, measurement, spent())
                        folder.save_positions(positions)
                due = time.perf_counter() - last_checkpoint >= checkpoint_seconds
                if accelerator.is_main_process and (due or step == schedule.steps):
                    save_checkpoint(folder.path / "checkpoint", bare, bare_optimizer, step=step, seconds=seconds)
                    last_checkpoint = time.perf_counter()
                started = time.perf_counter()
        how = {"status": "complete"}
    except DivergedError as error:
        how = {"status": "nan", "reason": f"{error} after step {step}"}
    if accelerator.is_main_process:
        folder.finish(**how, step=step, seconds=seconds)


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
