"""Shared arithmetic of the gates and of the normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

CLOSED_LOG_GATE = -1000.0
"""A log gate at or below this is closed: its factor is 0 in float32 and in float64."""


def bounded_log_gates(log_g: Tensor) -> Tensor:
    """Log gates with closed ones (-inf included) at a finite value, where they have zero gradient."""
    return log_g.clamp(min=CLOSED_LOG_GATE)


def safe_divide(numerator: Tensor, row_sum: Tensor) -> Tensor:
    """numerator / row_sum, and 0 with zero gradients where the row sum is 0."""
    empty = row_sum == 0
    return torch.where(empty, 0.0, numerator / torch.where(empty, 1.0, row_sum)).to(numerator.dtype)
