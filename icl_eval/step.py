"""One optimiser step: the arm's model and optimiser as its training settings ask for, and what a step does to them."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.tensor import DTensor

from icl_eval.experiment import Arm
from icl_eval.measure import ScoredLoss
from icl_eval.tasks import Batch

GRAPHS_PER_LAYER = 3
"""Training on the first, shorter sequences, training on whole ones, and measuring, which has its own."""
LOSS_GRAPHS = 16
"""More than a loss needs: whole pieces and last ones, of the start, of whole sequences, of a rest of micro-batches."""
CHECKED_TOKENS = 64


class StepResult(NamedTuple):
    """Scalars on the device, not yet waited for.

    Attributes:
        loss: mean over the global batch's scored tokens (nats).
        norm: of the gradient before clipping.
        skipped: 1 where the gradient was not finite and nothing was changed, 0 otherwise.
    """

    loss: Tensor
    norm: Tensor
    skipped: Tensor


class Rows(NamedTuple):
    """The rows of a global batch that a process trains on, on its device.

    Attributes:
        scored: bool ``[b, T]``.
        read: what the loss is a function of, as :attr:`Batch.read`.
        num_scored: scored positions of the whole global batch, a scalar.
    """

    scored: Tensor
    read: tuple[Tensor, ...]
    num_scored: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.scored, *self.read, self.num_scored)


def rows_of(batch: Batch, accelerator: Accelerator) -> Rows:
    """This process' rows of a global batch, on its device."""
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    scored, *read = (x[mine].to(accelerator.device, non_blocking=True) for x in (batch.scored, *batch.read))
    return Rows(scored, tuple(read), batch.scored.sum().to(accelerator.device, non_blocking=True))


def prepare(arm: Arm, seed: int, accelerator: Accelerator) -> tuple[nn.Module, AcceleratedOptimizer]:
    """The arm's model, initialised from the seed, and its optimiser, on the accelerator's device and processes.

    Beyond its limit of graphs torch would go on without compiling, so what earlier arms left is forgotten.
    """
    training = arm.training
    model = ScoredLoss(arm.model.build(seed))
    layers = model.model.layers
    if training.activation_checkpointing:
        for index, layer in enumerate(layers):
            layers[index] = checkpoint_wrapper(layer)
    if training.compile:
        torch.compiler.reset()
        torch._dynamo.config.recompile_limit = max(GRAPHS_PER_LAYER * len(layers), LOSS_GRAPHS)
        model.model.compile_parts()
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = [type(layers[0]).__name__]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": training.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        groups,
        lr=training.learning_rate,
        betas=training.betas,
        fused=True,
        capturable=accelerator.device.type == "cuda",
    )
    return accelerator.prepare(model, optimizer)


def warm_up(model: nn.Module, rows: Rows, arm: Arm, accelerator: Accelerator) -> None:
    """Read a global batch forward and backward and change nothing: what is compiled or checked at the first meeting of
    a shape is so before time is taken. Kernels cannot check themselves while they are compiled into a graph, so a
    compiled model reads a few tokens eagerly before.
    """
    if arm.training.compile:
        few = [x[:1, :CHECKED_TOKENS] for x in rows.read]
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            model(*few)
    _gradients(model, rows, arm, accelerator)
    model.zero_grad(set_to_none=True)


def train_step(
    model: nn.Module, optimizer: AcceleratedOptimizer, rows: Rows, arm: Arm, accelerator: Accelerator
) -> StepResult:
    """Train on a global batch, of which every process takes its rows: neither the number of processes nor that of
    micro-batches changes the data, or what the loss is divided by. Nothing here waits for the device.
    """
    loss = _gradients(model, rows, arm, accelerator)
    norm = accelerator.clip_grad_norm_(model.parameters(), arm.training.clip_norm)
    norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
    skipped = (~norm.isfinite()).to(torch.float32)
    optimizer.optimizer.found_inf = skipped  # fused optimisers then leave parameters and moments alone
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return StepResult(accelerator.reduce(loss, reduction="sum"), norm.detach(), skipped)


def _gradients(model: nn.Module, rows: Rows, arm: Arm, accelerator: Accelerator) -> Tensor:
    """Gradients of the global batch's mean loss; returns this process' share of that loss (nats)."""
    micro_batch_size = arm.training.micro_batch_size
    pieces = arm.task.seq_len // rows.scored.shape[1]
    at_a_time = len(rows.scored) if micro_batch_size is None else micro_batch_size * pieces
    parts = list(zip(*(x.split(at_a_time) for x in (rows.scored, *rows.read)), strict=True))
    total = torch.zeros((), device=accelerator.device)
    for number, (scored, *arguments) in enumerate(parts, start=1):
        with accelerator.no_sync(model) if number < len(parts) else nullcontext():
            loss = model(*arguments, weights=scored / rows.num_scored)
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    return total
