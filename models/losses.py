"""Losses of a head over a vocabulary, some tokens at a time, so that all their logits never exist at once."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

CHUNK_TOKENS = 8192
"""Tokens whose logits exist at a time."""


class ChunkNLL(nn.Module):
    """Losses of the tokens of a chunk, and whether each is the likeliest; without parameters of its own."""

    def forward(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = F.linear(hidden, weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets


def chunked_nll(chunk_nll: ChunkNLL, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (nats) ``[B, T]``, and whether each target is the likeliest token, of the last hidden layer ``[B, T, C]``
    and the head's weight ``[vocab, C]``. Gradients keep all logits."""
    chunks = zip(hidden.flatten(0, 1).split(CHUNK_TOKENS), targets.flatten().split(CHUNK_TOKENS), strict=True)
    parts = [chunk_nll(some, weight, wanted) for some, wanted in chunks]
    nll, correct = (torch.cat(column).view_as(targets) for column in zip(*parts, strict=True))
    return nll, correct


def chunked_loss(chunk_nll: ChunkNLL, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The sum of :func:`chunked_nll` times ``weights`` ``[B, T]``; can be differentiated once, in which no logits but
    those of a chunk exist either."""
    if targets.numel() <= CHUNK_TOKENS:
        return (chunked_nll(chunk_nll, hidden, weight, targets)[0] * weights).sum()
    return _ChunkedLoss.apply(chunk_nll, hidden.flatten(0, 1), weight, targets.flatten(), weights.flatten())


class _ChunkedLoss(torch.autograd.Function):
    """A chunk's gradients are taken as soon as its losses are known, and its logits are gone before the next: they are
    computed once, where checkpoints would compute them twice."""

    @staticmethod
    def forward(
        ctx: Any, chunk_nll: ChunkNLL, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        total = weights.new_zeros(())
        hidden_gradient, weight_gradient = torch.empty_like(hidden), torch.zeros_like(weight)
        chunks = (x.split(CHUNK_TOKENS) for x in (hidden, targets, weights, hidden_gradient))
        for some, wanted, shares, gradient in zip(*chunks, strict=True):
            with torch.enable_grad():
                leaves = some.detach().requires_grad_(), weight.detach().requires_grad_()
                loss = (chunk_nll(*leaves, wanted)[0] * shares).sum()
            of_hidden, of_weight = torch.autograd.grad(loss, leaves)
            total += loss.detach()
            gradient.copy_(of_hidden)
            weight_gradient += of_weight
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[None, Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return None, hidden_gradient * slope, weight_gradient * slope, None, None
