"""Several runs of an experiment at once: as processes that share this machine, or as tasks of a Ray cluster."""

import json
import math
import multiprocessing
import multiprocessing.connection
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from icl_eval.config import config_from_dict
from icl_eval.experiment import Experiment
from icl_eval.minutes import minutes
from icl_eval.presets import load_preset
from icl_eval.run import run_experiment

Job = dict[str, Any]
"""One arm and seed, JSON-ready: what :func:`run_job` needs."""
MAX_RETRIES = 5
"""How often Ray starts a run again whose worker has died."""


def run_here(experiment: Experiment, out: Path, **options: Any) -> tuple[Path, dict[str, str]]:
    """Run all arms and seeds in this process, one after the other; ``options`` as for ``run_experiment``."""
    return run_experiment(experiment, out, **options), {}


def run_in_processes(
    experiment: Experiment,
    out: Path,
    *,
    jobs: int,
    preset: str | None = None,
    device: str = "auto",
    tracker: str | None = None,
    tuning: dict[str, Any] | None = None,
    only: Collection[tuple[str, int]] | None = None,
    on_end: Callable[[str, str | None], None] = lambda run, failure: None,
) -> tuple[Path, dict[str, str]]:
    """Run every arm and seed in a process of its own, ``jobs`` at a time, equally many on each of the visible GPUs.

    A run that fails does not stop the others.

    Args:
        experiment, out, device, tracker, tuning, only: as for :func:`icl_eval.run.run_experiment`.
        jobs: processes at a time.
        preset: what the experiment was loaded from; needed where its classes are the user's.
        on_end: called with each run's name when it has ended, and the reason if it failed.

    Returns:
        The experiment's folder, and the reasons of the runs that failed, by arm.

    Raises:
        ValueError: the experiment cannot be run as it stands.
    """
    if jobs < 1:
        raise ValueError(f"jobs = {jobs}: must be at least 1")
    gpus = _gpus(device)
    root, jobs_left = _unfinished(experiment, out, preset, device, tracker, tuning, only)
    jobs = max(1, min(jobs, len(jobs_left)))
    work = _sharing(experiment, jobs_left, math.ceil(jobs / max(len(gpus), 1)))
    failures: dict[str, str] = {}
    workers = [_Worker(gpus[slot % len(gpus)] if gpus else None, jobs) for slot in range(jobs)]
    free: SimpleQueue[_Worker] = SimpleQueue()
    for worker in workers:
        free.put(worker)

    def run(job: Job) -> str | None:
        worker = free.get()
        try:
            return worker.run(job)
        finally:
            free.put(worker)

    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(run, job): job for job in work}
        try:
            for ended in as_completed(running):
                _note(running[ended], ended.result(), failures, on_end)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.stop()
    return root, failures


def run_on_ray(
    experiment: Experiment,
    out: Path,
    *,
    gpus_per_run: float = 1.0,
    preset: str | None = None,
    device: str = "auto",
    tracker: str | None = None,
    tuning: dict[str, Any] | None = None,
    only: Collection[tuple[str, int]] | None = None,
    on_end: Callable[[str, str | None], None] = lambda run, failure: None,
) -> tuple[Path, dict[str, str]]:
    """Run every arm and seed as a Ray task; one whose worker dies is started again and resumes.

    The cluster is that of ``RAY_ADDRESS``, or one on this machine. All its nodes need the same path ``out``.

    Args:
        gpus_per_run: GPUs of a task, where the cluster has any; a fraction lets runs share one.

    Returns, and the other arguments: as for :func:`run_in_processes`.

    Raises:
        ValueError: Ray is not installed, or the experiment cannot be run as it stands.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("the Ray launcher needs Ray: pip install 'icl-eval[ray]'") from None
    if gpus_per_run <= 0:
        raise ValueError(f"gpus_per_run = {gpus_per_run}: must be positive")
    root, jobs_left = _unfinished(experiment, out.resolve(), preset, device, tracker, tuning, only)
    ray.init(ignore_reinit_error=True, log_to_driver=False, configure_logging=False)
    cluster = ray.cluster_resources()
    gpus = gpus_per_run if device != "cpu" and cluster.get("GPU", 0) else 0
    sharing = math.ceil(1 / gpus) if gpus else int(cluster["CPU"])
    work = _sharing(experiment, jobs_left, min(sharing, len(jobs_left)))
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=MAX_RETRIES, max_calls=1)(run_job)
    failures: dict[str, str] = {}
    running = {task.remote(job): job for job in work}
    while running:
        (ended,), _ = ray.wait(list(running), num_returns=1)
        job = running.pop(ended)
        try:
            ray.get(ended)
            _note(job, None, failures, on_end)
        except ray.exceptions.RayError as error:
            _note(job, str(error).strip().splitlines()[-1], failures, on_end)
    return root, failures


def run_job(job: Job) -> None:
    """Run one arm and seed."""
    if job["preset"] is not None:
        load_preset(job["preset"])
    run_experiment(
        config_from_dict(job["experiment"]),
        job["out"],
        device=job["device"],
        tracker=job["tracker"],
        preset=job["preset"],
        tuning=job["tuning"],
        runs_per_device=job["runs_per_device"],
        only={(job["arm"], job["seed"])},
    )


def _unfinished(
    experiment: Experiment,
    out: Path,
    preset: str | None,
    device: str,
    tracker: str | None,
    tuning: dict[str, Any] | None,
    only: Collection[tuple[str, int]] | None,
) -> tuple[Path, list[Job]]:
    """The experiment's folder, checked and begun, and the runs that are asked for and not done."""
    root = run_experiment(experiment, out, device=device, tracker=tracker, preset=preset, only=set())
    shared = {
        "preset": preset if preset is None or not Path(preset).is_file() else str(Path(preset).resolve()),
        "experiment": experiment.to_dict(),
        "out": str(out),
        "device": device,
        "tracker": tracker,
        "tuning": tuning,
    }
    longest_first = sorted(experiment.arms, key=lambda arm: -minutes(arm, experiment.snapshots))
    runs = [(arm, seed) for seed in experiment.seeds for arm in longest_first]
    return root, [
        {**shared, "arm": arm.name, "seed": seed}
        for arm, seed in runs
        if (only is None or (arm.name, seed) in only) and not (root / arm.name / f"seed{seed}" / "DONE").exists()
    ]


def _sharing(experiment: Experiment, jobs: list[Job], runs_per_device: int) -> list[Job]:
    """The jobs, told how many of them share a device.

    Raises:
        ValueError: several do, and a budget is in seconds.
    """
    timed = [arm.name for arm in experiment.arms if arm.budget.seconds is not None]
    if timed and runs_per_device > 1:
        raise ValueError(
            f"{runs_per_device} runs would share a device: the budget of arm {timed[0]!r} is in seconds, which that "
            "would falsify"
        )
    return [job | {"runs_per_device": runs_per_device} for job in jobs]


def _note(job: Job, failure: str | None, failures: dict[str, str], on_end: Callable[[str, str | None], None]) -> None:
    name = f"{job['arm']} seed {job['seed']}"
    if failure is not None:
        before = f"{failures[job['arm']]}; " if job["arm"] in failures else ""
        failures[job["arm"]] = f"{before}{name}: {failure}"
    on_end(name, failure)


def _gpus(device: str) -> list[str]:
    """The GPUs to take turns on, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if device == "cpu" or not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


class _Worker:
    """A process that runs jobs one after the other, each in a process of its own.

    What all runs import it imports once; the processes that it forks have that. torch's compiler is not among it: to
    import that starts CUDA, which does not survive a fork.

    Args:
        gpu: what its runs see, as ``CUDA_VISIBLE_DEVICES`` names it.
        workers: how many there are, which share this machine's cores.
    """

    def __init__(self, gpu: str | None, workers: int):
        share = str(max(1, (os.cpu_count() or 1) // workers))
        self.environment = {"OMP_NUM_THREADS": share, "TORCHINDUCTOR_COMPILE_THREADS": share, **os.environ}
        if gpu is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = gpu
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by stop)
        self.process: subprocess.Popen | None = None

    def run(self, job: Job) -> str | None:
        """Run a job to its end; returns why it failed, if it did."""
        self.errors.seek(0)
        self.errors.truncate()
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "icl_eval.launch"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.errors,
                env=self.environment,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline() or self.process.wait())
        if status == 0:
            return None
        if status < 0:
            return f"killed by signal {-status}"
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return (lines or ["no reason given"])[-1]

    def stop(self) -> None:
        """End the process, and the run that is under way."""
        if self.process is not None:
            with self.process:
                assert self.process.stdin is not None
                self.process.stdin.close()
        self.errors.close()


def _serve() -> None:
    """Run the job of every line read, and write how its process ended; at the end of the input, end what runs."""
    forks = sys.platform == "linux"
    context = multiprocessing.get_context("fork") if forks else multiprocessing.get_context("spawn")
    while line := sys.stdin.readline():
        run = context.Process(target=_run_forked, args=(json.loads(line),))
        run.start()
        if run.sentinel not in multiprocessing.connection.wait([run.sentinel, sys.stdin.fileno()]):
            run.kill()
        run.join()
        print(run.exitcode, flush=True)


def _run_forked(job: Job) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    run_job(job)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


if __name__ == "__main__":
    _serve()
