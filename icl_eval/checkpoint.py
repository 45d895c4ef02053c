"""Resumable training states: safetensors and JSON, checked on reading, never pickled."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from icl_eval.run_folder import write_atomically

KEEP = 2
"""How many checkpoints of a run are kept."""


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, step: int, seconds: float
) -> None:
    """Write ``folder/step-N`` and remove all but the last :data:`KEEP`.

    The manifest, written last, holds the hash of each file: a checkpoint without it, or with other hashes, is torn.

    Args:
        step: steps taken.
        seconds: spent on training.
    """
    target = folder / f"step-{step:09d}"
    files = {
        "model.safetensors": save(_contiguous(model.state_dict())),
        "optimizer.safetensors": save(_optimizer_tensors(optimizer)),
    }
    for name, data in files.items():
        write_atomically(target / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    write_atomically(target / "manifest.json", json.dumps({"step": step, "seconds": seconds, "sha256": hashes}))
    for old in sorted(folder.glob("step-*"))[:-KEEP]:
        shutil.rmtree(old)


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    """Restore the newest intact checkpoint; damaged ones are named in a warning and passed over.

    Returns:
        Steps taken and seconds spent; ``(0, 0.0)`` where there is none.
    """
    for target in sorted(folder.glob("step-*"), reverse=True):
        try:
            manifest = json.loads((target / "manifest.json").read_text())
            tensors = {name: _verified(target / name, digest) for name, digest in manifest["sha256"].items()}
            weights, slots = tensors["model.safetensors"], tensors["optimizer.safetensors"]
            if _shapes(weights) != _shapes(model.state_dict()):
                raise ValueError("it belongs to another model")
            step, seconds = int(manifest["step"]), float(manifest["seconds"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"checkpoint {target} cannot be used ({error}); trying the one before it", stacklevel=2)
            continue
        model.load_state_dict(weights)
        _restore_optimizer(optimizer, slots)
        return step, seconds
    return 0, 0.0


def _verified(path: Path, digest: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} is not what was written")
    return load(data)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, so that no two share memory (tied embeddings do), which safetensors refuses."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return _contiguous({f"{index}.{name}": value for index, slots in state.items() for name, value in slots.items()})


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        slots.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": slots, "param_groups": optimizer.state_dict()["param_groups"]})
