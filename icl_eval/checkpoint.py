"""Resumable training states: safetensors and JSON, checked on reading, never pickled."""

import hashlib
import json
import shutil
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from icl_eval.run_folder import RunFolderError, write_atomically

KEEP = 2
"""How many checkpoints of a run are kept."""
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step, seconds: that the model at hand has been trained for.
        skipped_steps: of its steps, those that changed nothing because the gradient was not finite.
        steps_spent, seconds_spent: that the run has trained for, on the trunk and on all branches.
        seconds_waited: of the seconds spent, those in which training waited for its next batch.
    """

    step: int = 0
    seconds: float = 0.0
    skipped_steps: int = 0
    steps_spent: int = 0
    seconds_spent: float = 0.0
    seconds_waited: float = 0.0


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    progress: Progress,
    fork: int | None = None,
) -> None:
    """Gather the state from all processes; in the main one write ``folder/step-N``, N the steps spent.

    All but the last :data:`KEEP` and the forks they need are removed, and so are any that stand after N, which are of a
    path that was left. The manifest, written last, holds the hash of each file: a checkpoint without it, or with other
    hashes, is torn.

    Args:
        fork: N of the checkpoint of the trunk, to which the run returns when the branch that this one is on has ended.
    """
    weights: Any = get_model_state_dict(model, options=_WHOLE)
    moments: Any = {"state": {}}
    if optimizer.state:  # one that has taken no step takes one when it is asked
        moments = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    rng = _rng_states(accelerator)
    if not accelerator.is_main_process:
        return
    target = _path(folder, progress.steps_spent)
    slots = {f"{name}/{slot}": x for name, state in moments["state"].items() for slot, x in state.items()}
    tensors: dict[str, dict[str, Tensor]] = {"model": weights, "optimizer": slots, "rng": rng}
    files = {f"{name}.safetensors": save(_contiguous(part)) for name, part in tensors.items()}
    for name, data in files.items():
        write_atomically(target / name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    manifest = {"progress": asdict(progress), "fork": fork, "sha256": hashes}
    write_atomically(target / "manifest.json", json.dumps(manifest))
    kept = sorted(path for path in folder.glob("step-*") if path <= target)[-KEEP:]
    kept += [_path(folder, fork) for fork in map(_fork, kept) if fork is not None]
    for old in set(folder.glob("step-*")) - set(kept):
        shutil.rmtree(old)


def load_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    steps_spent: int | None = None,
) -> Progress:
    """Restore the newest intact checkpoint, or the one at ``steps_spent``, torch's random generators included.

    Damaged ones are named in a warning and passed over.

    Returns:
        How far the run had come; nowhere if there is no checkpoint.
    """
    candidates = sorted(folder.glob("step-*"), reverse=True) if steps_spent is None else [_path(folder, steps_spent)]
    for target in candidates:
        try:
            progress, weights, slots, rng = _read(target, model)
            if (fork := _fork(target)) is not None:
                _read(_path(folder, fork), model)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            warnings.warn(f"checkpoint {target} cannot be used ({error}); trying the one before it", stacklevel=2)
            continue
        state: dict[str, Any] = {}
        for key, value in slots.items():
            name, slot = key.rsplit("/", 1)
            state.setdefault(name, {})[slot] = value
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, dict(weights), options=whole)
        if state:
            groups = get_optimizer_state_dict(model, optimizer)["param_groups"]
            set_optimizer_state_dict(model, optimizer, {"state": state, "param_groups": groups}, options=whole)
        else:
            optimizer.state.clear()
        _restore_rng(rng, accelerator)
        return progress
    return Progress()


def _path(folder: Path, steps_spent: int) -> Path:
    return folder / f"step-{steps_spent:09d}"


def _fork(target: Path) -> int | None:
    """The fork that a checkpoint needs; ``None`` if none, or if its manifest cannot be read."""
    try:
        return json.loads((target / "manifest.json").read_text())["fork"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _read(target: Path, model: nn.Module) -> tuple[Progress, dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    manifest = json.loads((target / "manifest.json").read_text())
    tensors = {name: _verified(target / name, digest) for name, digest in manifest["sha256"].items()}
    weights, slots, rng = (tensors[f"{name}.safetensors"] for name in ("model", "optimizer", "rng"))
    if _shapes(weights) != _shapes(model.state_dict()):
        raise ValueError("it belongs to another model")
    return Progress(**manifest["progress"]), weights, slots, rng


def load_weights(folder: Path, model: nn.Module) -> None:
    """Load the newest checkpoint's weights, and nothing else of it.

    Raises:
        RunFolderError: there is no checkpoint, it is damaged, or it belongs to another model.
    """
    digest, target = weights_hash(folder), _newest(folder)
    try:
        weights = _verified(target / "model.safetensors", digest)
        if _shapes(weights) != _shapes(model.state_dict()):
            raise ValueError("it belongs to another model")
    except (OSError, ValueError, SafetensorError) as error:
        raise RunFolderError(f"checkpoint {target} cannot be used: {error}") from error
    model.load_state_dict(weights)


def weights_hash(folder: Path) -> str:
    """Hash of the newest checkpoint's weights.

    Raises:
        RunFolderError: there is no checkpoint, or its manifest is damaged.
    """
    target = _newest(folder)
    try:
        return json.loads((target / "manifest.json").read_text())["sha256"]["model.safetensors"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"checkpoint {target} cannot be used: {error}") from error


def _newest(folder: Path) -> Path:
    found = sorted(folder.glob("step-*"))
    if not found:
        raise RunFolderError(f"{folder} holds no checkpoint: the model of this run was not kept")
    return found[-1]


def _verified(path: Path, digest: str) -> dict[str, Tensor]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"{path.name} is not what was written")
    return dict(sorted(load(data).items()))  # in one order in all processes, which distribute them together


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, so that no two share memory (tied embeddings do), which safetensors refuses."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }


def _rng_states(accelerator: Accelerator) -> dict[str, Tensor]:
    """States of torch's random generators on CPU and GPU, uint8 ``[processes, bytes]``, gathered from all processes."""
    states = {"cpu": torch.get_rng_state()}
    if accelerator.device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(accelerator.device)
    return {name: accelerator.gather(state[None].to(accelerator.device)).cpu() for name, state in states.items()}


def _restore_rng(states: dict[str, Tensor], accelerator: Accelerator) -> None:
    """Every process takes its own state; where there are more processes than before, they share."""
    mine = {name: rows[accelerator.process_index % len(rows)].clone() for name, rows in states.items()}
    torch.set_rng_state(mine["cpu"])
    if accelerator.device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], accelerator.device)
