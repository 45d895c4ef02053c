"""Launch settings of the Triton kernels: a small table, so that nothing is measured on the default path."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Settings of one kernel: its tile sizes by their name in the kernel, warps and pipeline stages of a program."""

    tiles: tuple[tuple[str, int], ...]
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**dict(self.tiles), "num_warps": self.num_warps, "num_stages": self.num_stages}


def launch(num_warps: int, num_stages: int, **tiles: int) -> Launch:
    return Launch(tiles=tuple(tiles.items()), num_warps=num_warps, num_stages=num_stages)


TABLE: dict[tuple[str, str, int, int], Launch] = {
    ("sm90", "update_state", 64, 64): launch(4, 2, COUNT=4, BT=64, STAGES=2),
    ("sm90", "forward", 64, 64): launch(4, 3, BM=128, BN=64, STAGES=4),
    ("sm90", "query_gradient", 64, 64): launch(4, 3, BM=128, BN=64, STAGES=4),
    ("sm90", "key_value_gradient", 64, 64): launch(4, 3, BK=64, BQ=64, STAGES=3),
    ("sm90", "update_state", 32, 32): launch(1, 3, COUNT=4, BT=64, STAGES=3),
    ("sm90", "forward", 32, 32): launch(4, 3, BM=128, BN=64, STAGES=4),
    ("sm90", "query_gradient", 32, 32): launch(4, 3, BM=128, BN=64, STAGES=4),
    ("sm90", "key_value_gradient", 32, 32): launch(4, 3, BK=128, BQ=32, STAGES=4),
}
"""(architecture, kernel, head_dim, value_dim) to the settings for bfloat16, as
``python -m icl_eval.kernels.power.tune``
measured them. To extend it, run that command and paste the lines it prints."""

HOPPER: dict[tuple[str, int], Launch] = {
    ("update_state", 64): launch(4, 1, COUNT=4, BT=64, STAGES=3),
    ("forward", 64): launch(4, 1, BM=128, BN=64, COUNT=2, STAGES=3),
    ("query_gradient", 64): launch(4, 1, BM=128, BN=64, COUNT=2, STAGES=4),
    ("key_value_gradient", 64): launch(4, 1, BK=64, BQ=32, COUNT=2, STAGES=3),
    ("forward", 32): launch(4, 1, BM=128, BN=32, COUNT=2, STAGES=4),
    ("query_gradient", 32): launch(4, 1, BM=128, BN=32, COUNT=2, STAGES=4),
    ("key_value_gradient", 32): launch(4, 1, BK=128, BQ=32, COUNT=4, STAGES=3),
}
"""(kernel, features of keys and of values) to the settings of those in :mod:`hopper`, from the same command."""

ATTENTION_ALONE: dict[tuple[str, int], Launch] = {
    ("key_value_gradient", 64): launch(4, 1, BK=64, BQ=64, COUNT=2, STAGES=2),
}
"""As :data:`HOPPER`, of calls without states (``tune --attention-alone``), where others are faster than its own."""


def settings(kernel: str, head_dim: int, value_dim: int, dtype: torch.dtype, device: torch.device) -> Launch:
    """The table's entry for a kernel, or a setting that fits every shape."""
    if dtype == torch.bfloat16:
        measured = TABLE.get((architecture(device), kernel, head_dim, value_dim))
        if measured is not None:
            return measured
    return fallback(kernel, head_dim, value_dim, dtype)


def fallback(kernel: str, head_dim: int, value_dim: int, dtype: torch.dtype) -> Launch:
    """Settings sized to fit registers and shared memory at any supported shape."""
    row_bytes = max(head_dim, value_dim) * dtype.itemsize
    tile, stages = (64, 2) if row_bytes <= 128 else (32, 2) if row_bytes <= 256 else (16, 1)
    if kernel == "update_state":
        return launch(4, stages, COUNT=2 if row_bytes <= 128 else 1, BT=tile, STAGES=stages)
    if kernel == "forward":
        return launch(4, stages, BM=64, BN=tile, STAGES=stages)
    if kernel == "query_gradient":
        return launch(4, stages, BM=64, BN=min(tile, 32), STAGES=stages)
    if kernel == "key_value_gradient":
        if row_bytes > 256:
            return launch(4, stages, BK=32, BQ=32, STAGES=stages)
        return launch(4, stages, BK=64, BQ=min(tile, 32), STAGES=stages)
    raise KeyError(kernel)


@functools.cache
def architecture(device: torch.device) -> str:
    """For example ``sm90``; ``cpu`` under Triton's interpreter."""
    if device.type != "cuda":
        return device.type
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm{major}{minor}"
