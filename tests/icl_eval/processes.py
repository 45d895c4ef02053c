"""Runs in processes of their own that can be killed; a server that has imported everything already forks them."""

import gc
import os
import signal
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

_SERVER = get_context("forkserver")
_SERVER.set_forkserver_preload(
    # torch's compiler, which training loads, starts CUDA where there is any, and that does not survive a fork.
    ["icl_eval.run", "icl_eval.presets", *([] if torch.cuda.is_available() else ["torch._dynamo"])]
)


def start(preset: Path, out: Path, *, log_every: int = 1, kill_at: int | None = None) -> BaseProcess:
    """Run a preset on the CPU, with a checkpoint at every line of metrics.

    Args:
        log_every: steps between lines of metrics.
        kill_at: steps after which the process kills itself.
    """
    process = _SERVER.Process(target=_run, args=(preset, out, log_every, kill_at, torch.get_num_threads()))
    process.start()
    return process


def _run(preset: Path, out: Path, log_every: int, kill_at: int | None, threads: int) -> None:
    from icl_eval import train
    from icl_eval.presets import load_preset
    from icl_eval.run import run_experiment

    def kill(steps_spent: int, loss: float) -> None:
        if steps_spent == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    gc.freeze()
    torch.set_num_threads(threads)
    train.LOG_EVERY_STEPS = log_every
    run_experiment(load_preset(str(preset)), out, device="cpu", checkpoint_seconds=0.0, on_progress=kill)
