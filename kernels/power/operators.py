"""Registers kernels as torch operators, so that torch.compile, checkpointing and the FLOP counter know them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

LIBRARY = torch.library.Library("icl_eval", "FRAGMENT")
PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def define_operator(
    name: str,
    function: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    setup_context: Callable[..., None] | None = None,
    differentiate: Callable[..., tuple] | None = None,
) -> Callable[..., Any]:
    """Makes ``function`` the operator ``torch.ops.icl_eval.<name>``, for tensors on any device, and returns what calls
    it: through torch where something other than autograd takes note of operators, and else directly. torch's way there
    and back takes as long as launching the kernels, which is longer than they run for on short sequences.

    Registered without ``torch.library.custom_op``, whose checks on every call take longer still.

    Args:
        function: with annotated arguments, the first of them a tensor; it changes none of them, and its outputs alias
            neither them nor each other.
        fake: allocates outputs of the same shapes, dtypes and strides, and computes nothing.
        setup_context, differentiate: as those of ``torch.library.register_autograd``, for an operator with gradients.
    """
    LIBRARY.define(name + torch.library.infer_schema(function, mutates_args=()), tags=(torch.Tag.pt2_compliant_tag,))

    @functools.wraps(function)
    def on_its_device(first: Tensor, *rest: Any) -> Any:
        with torch.cuda.device_of(first):  # kernels are launched on the current device, whatever that of their tensors
            return function(first, *rest)

    LIBRARY.impl(name, on_its_device, "CompositeExplicitAutograd")
    torch.library.register_fake(f"icl_eval::{name}", fake, lib=LIBRARY)
    operator = getattr(torch.ops.icl_eval, name)
    directly: Callable[..., Any] = on_its_device
    if setup_context is not None and differentiate is not None:
        torch.library.register_autograd(f"icl_eval::{name}", differentiate, setup_context=setup_context, lib=LIBRARY)
        directly = _differentiable(name, on_its_device, setup_context, differentiate)

    def call(*arguments: Any) -> Any:
        return (operator if _noted(arguments) else directly)(*arguments)

    return call


def _noted(arguments: tuple[Any, ...]) -> bool:
    """Whether anything takes note of operators: a compiler, a mode such as the FLOP counter's, or a kind of tensor."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
        or torch._C._are_functorch_transforms_active()
        or any(isinstance(x, Tensor) and type(x) not in PLAIN for x in arguments)
    )


def _differentiable(
    name: str, function: Callable[..., Any], setup_context: Callable[..., None], differentiate: Callable[..., tuple]
) -> Callable[..., Any]:
    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            output = function(*arguments)
            setup_context(ctx, arguments, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple:
            if torch.is_grad_enabled():
                raise RuntimeError(
                    f"{name} has no second derivative, which create_graph=True asks for; use backend='chunked'"
                )
            return differentiate(ctx, *gradients)

    Differentiable.__name__ = name  # as profilers show it

    def call(*arguments: Any) -> Any:
        wanted = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in arguments)
        return (Differentiable.apply if wanted else function)(*arguments)

    return call
