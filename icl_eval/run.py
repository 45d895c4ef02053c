"""Run an experiment: every arm and seed into its folder, skipping what is done and resuming what is not."""

import os
import platform
import subprocess
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin, LoggerType

from icl_eval.budget import Schedule
from icl_eval.config import did_you_mean
from icl_eval.experiment import Arm, Experiment
from icl_eval.run_folder import RunFolder, to_json, write_atomically
from icl_eval.schedule import Plan, make_plan
from icl_eval.tasks import Source, TextSource
from icl_eval.train import calibrate, heldout_sequences, train_arm

PACKAGES = ("icl-eval", "torch", "triton", "accelerate", "numpy", "scipy")


def run_experiment(
    experiment: Experiment,
    out: str | Path = "runs",
    *,
    device: str = "auto",
    sharding: str = "none",
    tracker: str | None = None,
    checkpoint_seconds: float = 30.0,
    only: Collection[tuple[str, int]] | None = None,
    preset: str | None = None,
    tuning: Mapping[str, Any] | None = None,
    runs_per_device: int = 1,
    on_start: Callable[[Arm, int, int], None] = lambda arm, seed, steps: None,
    on_progress: Callable[[int, float], None] = lambda step, loss: None,
    on_end: Callable[[Arm, int], None] = lambda arm, seed: None,
) -> Path:
    """Train and measure all arms and seeds; returns the experiment's folder, ``out/NAME-HASH``.

    Everything that could be wrong with the experiment is found before anything is trained. Runs that are done are
    reused.

    Args:
        experiment: what to run.
        out: where the experiment's folder goes.
        device: ``"auto"`` (a CUDA GPU if there is one), ``"cpu"`` or ``"cuda"``. GPUs train in bfloat16, CPUs in
            float32.
        sharding: under torchrun, ``"none"`` gives every process the whole model (DDP), ``"fsdp2"`` a share of it.
        tracker: accelerate's name of where metrics go beside ``metrics.jsonl``, such as ``"tensorboard"``.
        checkpoint_seconds: time between checkpoints.
        only: arms' names and seeds to run, in place of all; what others run of the same experiment is left alone.
        preset: name or file that the experiment was loaded from; recorded in ``experiment.json``, a file by its name.
        tuning: by arms' names, how the learning rate was found; recorded in ``config.json``.
        runs_per_device: how many runs share the GPU, or the machine where there is none, this one included; recorded in
            ``env.json``, since times mean little where it is not 1. A resumed run keeps the largest.
        on_start: called with arm, seed and steps, all branches included, before each run that is not done.
        on_progress: called during each run with steps spent and mean loss.
        on_end: called after each run, and at once for those done before.

    Raises:
        ValueError: the experiment cannot be run as it stands.
        RunFolderError: a folder cannot be written, or another process is at work in it.
    """
    accelerator = make_accelerator(device, sharding, tracker)
    for arm in experiment.arms:
        if arm.budget.seconds is None:
            make_plan(arm, arm.schedule().steps, experiment.snapshots)
        for field in ("batch_size", "start_batch_size"):
            size, processes = getattr(arm.training, field), accelerator.num_processes
            if size is not None and size < processes:
                raise ValueError(
                    f"arm {arm.name!r}: {field} = {size} is smaller than the number of processes, {processes}: every "
                    "process needs a sequence"
                )
            if size is not None and accelerator.is_fsdp2 and size % processes:
                raise ValueError(
                    f"arm {arm.name!r}: {field} = {size} must be a multiple of the number of processes, {processes}, "
                    "when they share the model"
                )
    runs = [(arm, seed) for arm in experiment.arms for seed in experiment.seeds]
    runs = [run for run in runs if only is None or (run[0].name, run[1]) in only]
    first = experiment.seeds[0]
    sources = {(arm.task, seed): arm.task.build(seed) for arm, seed in runs}
    sources |= {(task, first): task.build(first) for task in experiment.tasks() if (task, first) not in sources}
    for task in experiment.tasks():
        heldout_sequences(experiment, sources[task, first])
    manifests = {task: sources[task, first].manifest() for task in experiment.tasks()}
    circumstances = {
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "data": {arm.name: manifests[arm.task].get("sha256") for arm in experiment.arms},
    }
    root = Path(out) / f"{experiment.name}-{experiment.fingerprint(**circumstances)}"
    if accelerator.is_main_process:
        loaded_from = None if preset is None else Path(preset).name
        described = {**experiment.to_dict(), "preset": loaded_from, "circumstances": circumstances}
        write_atomically(root / "experiment.json", to_json(described, indent=2))
    for arm, seed in runs:
        folder = RunFolder(root / arm.name / f"seed{seed}")
        if not folder.done:
            with folder.locked() if accelerator.is_main_process else nullcontext():
                source = sources[arm.task, seed]
                schedule = _schedule(arm, folder, source, accelerator)
                plan = make_plan(arm, schedule.steps, experiment.snapshots)
                if accelerator.is_main_process:
                    described = describe(arm, seed, schedule, plan, accelerator)
                    folder.begin(
                        described | {"tuning": (tuning or {}).get(arm.name)},
                        environment(accelerator.device)
                        | {"runs_per_device": max(runs_per_device, folder.recorded_sharing())},
                        source.manifest(),
                        source.vocabulary() if isinstance(source, TextSource) else None,
                    )
                on_start(arm, seed, plan.steps_spent)
                _start_tracking(accelerator, root, arm, seed)
                train_arm(
                    experiment,
                    arm,
                    seed,
                    source,
                    schedule,
                    folder,
                    accelerator,
                    checkpoint_seconds=checkpoint_seconds,
                    on_progress=on_progress,
                )
                for running in accelerator.trackers:
                    running.finish()
                accelerator.trackers = []
                accelerator.free_memory()
        accelerator.wait_for_everyone()
        on_end(arm, seed)
    return root


def make_accelerator(device: str, sharding: str = "none", tracker: str | None = None) -> Accelerator:
    """accelerate's handle on device, processes, precision and tracking.

    Args:
        device: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        sharding: under torchrun, ``"none"`` gives every process the whole model (DDP), ``"fsdp2"`` a share of it.
        tracker: one of accelerate's, such as ``"tensorboard"``.

    Raises:
        ValueError: an unknown device, sharding or tracker, or one that cannot be had here.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device = {device!r}: must be 'auto', 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device = 'cuda': this machine has no usable CUDA GPU; use 'cpu' or 'auto'")
    if sharding not in ("none", "fsdp2"):
        raise ValueError(f"sharding = {sharding!r}: must be 'none' or 'fsdp2'")
    if sharding == "fsdp2" and int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError("sharding = 'fsdp2': there is one process, nothing to share with; start several with torchrun")
    trackers = [str(name) for name in LoggerType if name != LoggerType.ALL]
    if tracker is not None and tracker not in trackers:
        raise ValueError(f"unknown tracker {tracker!r}; {did_you_mean(tracker, trackers)}")
    cuda = device != "cpu" and torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=not cuda,
        mixed_precision="bf16" if cuda else "no",
        fsdp_plugin=sharding_plugin() if sharding == "fsdp2" else None,
        log_with=tracker,
        project_dir=None if tracker is None else ".",
    )
    if sharding == "fsdp2" and not accelerator.is_fsdp2:
        raise ValueError("sharding = 'fsdp2': accelerate shares a model out over GPUs only, and there are none here")
    if tracker is not None and not accelerator.log_with:
        raise ValueError(f"the tracker {tracker!r} is not installed: pip install {tracker}, or 'icl-eval[tracking]'")
    return accelerator


def sharding_plugin() -> FullyShardedDataParallelPlugin:
    """FSDP2 with parameters in float32: autocast chooses what is computed in less, as it does without sharding."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    return FullyShardedDataParallelPlugin(fsdp_version=2, mixed_precision_policy=MixedPrecisionPolicy())


def _start_tracking(accelerator: Accelerator, root: Path, arm: Arm, seed: int) -> None:
    """Begin a run of its own with the trackers, if there are any; those that write files do so below the root."""
    accelerator.project_configuration.logging_dir = str(root / "tracking")
    accelerator.init_trackers(f"{arm.name}-seed{seed}")


def _schedule(arm: Arm, folder: RunFolder, source: Source, accelerator: Accelerator) -> Schedule:
    """The arm's budget in steps: as recorded if the run has begun, calibrated if the budget is in seconds."""
    if arm.budget.seconds is None:
        return arm.schedule()
    recorded = folder.recorded_config()
    accelerator.wait_for_everyone()
    return Schedule(**recorded["schedule"]) if recorded else arm.schedule(calibrate(arm, source, accelerator))


def describe(arm: Arm, seed: int, schedule: Schedule, plan: Plan, accelerator: Accelerator) -> dict[str, Any]:
    """``config.json`` of a run: the resolved config, and what follows from it.

    ``schedule`` is the budget, which the model measured last has been trained for; ``spent`` counts all branches.
    """
    context = arm.task.seq_len
    state, model = arm.model.state_size(context), arm.model
    flops, paper = model.flops_per_token(context), model.flops_per_token(context, causal=False)
    return {
        "arm": arm.to_dict(),
        "seed": seed,
        "device": accelerator.device.type,
        "precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "sharding": "fsdp2" if accelerator.is_fsdp2 else "none",
        "schedule": schedule._asdict(),
        "spent": {
            "steps": plan.steps_spent,
            "tokens": plan.spent(arm.tokens_after),
            "flops": plan.spent(arm.flops_after),
        },
        "costs": {
            "context": context,
            "parameters": model.num_parameters(),
            "state_elements": {"mathematical": state.mathematical, "stored": state.stored},
            "state_bytes": state.bytes(2 if accelerator.mixed_precision == "bf16" else 4),
            "forward_flops_per_token": flops._asdict(),
            "forward_flops_per_token_paper_count": paper._asdict(),
            "forward_flops_per_token_executed": model.executed_flops_per_token(context)._asdict(),
            "decode_flops": model.decode_flops(context)._asdict(),
        },
    }


@cache
def environment(device: torch.device) -> dict[str, Any]:
    """``env.json``: what the numbers were computed with."""
    cuda = device.type == "cuda"
    return {
        "commit": source_commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def source_commit() -> str | None:
    """Commit of the source tree that this package is imported from, with ``+`` where it was changed since.

    A copy of the tree without its history is told its commit by the variable ``ICL_EVAL_COMMIT``.
    """
    if told := os.environ.get("ICL_EVAL_COMMIT"):
        return told
    here = Path(__file__).parent
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        tracked = ["git", "-C", str(here), "ls-files", "--error-unmatch", Path(__file__).name]
        subprocess.run(tracked, check=True, capture_output=True)
        return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
