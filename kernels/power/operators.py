"""Registers kernels as torch operators, so that torch.compile, checkpointing and the FLOP counter know them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

LIBRARY = torch.library.Library("icl_eval", "FRAGMENT")


def define_operator(name: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Makes ``function`` the operator ``torch.ops.icl_eval.<name>``, for tensors on any device.

    Registered without ``torch.library.custom_op``, whose checks on every call take longer than launching the kernels.

    Args:
        function: with annotated arguments, the first of them a tensor; it changes none of them, and its outputs alias
            neither them nor each other.
        fake: allocates outputs of the same shapes, dtypes and strides, and computes nothing.
    """
    LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))

    @functools.wraps(function)
    def on_its_device(first: torch.Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):  # kernels are launched on the current device, whatever that of their tensors
            return function(first, *rest)

    LIBRARY.impl(name, on_its_device, "CompositeExplicitAutograd")
    torch.library.register_fake(f"icl_eval::{name}", fake, lib=LIBRARY)
