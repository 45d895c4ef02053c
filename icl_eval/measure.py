"""Measure a model on held-out sequences, position by position."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from icl_eval.models import LanguageModel
from icl_eval.positions import Measurement
from icl_eval.tally import Tally
from icl_eval.tasks import Source, TextSource


class ScoredLoss(nn.Module):
    """A language model as a function of tokens and targets; the module that accelerate wraps."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(
        self, tokens: Tensor, targets: Tensor, inputs: Tensor | None = None, *, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Losses ``[B, T]`` in the task's unit, and whether the likeliest token is the target ``[B, T]`` (or NaN); with
        ``weights`` ``[B, T]`` the weighted sum of the losses, to train on."""
        if weights is not None:
            return self.model.loss(tokens, targets, weights, inputs)
        return self.model.nll(tokens, targets, inputs)


@torch.no_grad()
def measure(
    model: nn.Module,
    source: Source,
    *,
    num_positions: int,
    num_sequences: int,
    batch_size: int,
    accelerator: Accelerator,
) -> Measurement:
    """Losses of a :class:`ScoredLoss` on the first ``num_sequences`` held-out sequences.

    Batches are shared out over the processes, and each gets the whole sums. The logits of a long sequence never exist
    at once. Bytes are kept where the source says how many each of its tokens stands for.
    """
    training = model.training
    model.eval()
    batches = [source.batch("heldout", index, batch_size) for index in range(num_sequences // batch_size)]
    documents = np.unique(np.concatenate([batch.document.numpy() for batch in batches]))
    tally = Tally(documents, num_positions)
    token_bytes = source.token_bytes() if isinstance(source, TextSource) else None
    for first in range(0, len(batches), accelerator.num_processes):
        mine = first + accelerator.process_index
        batch = batches[min(mine, len(batches) - 1)]
        nll, correct = model(*(x.to(accelerator.device) for x in batch.read))
        if mine >= len(batches):
            continue  # a sharded model needs every process whenever one calls it
        scored = batch.scored.numpy()
        targets = batch.targets.numpy()[scored]
        tally.add(
            np.broadcast_to(batch.document.numpy()[:, None], scored.shape)[scored],
            batch.position.numpy()[scored],
            nll.double().cpu().numpy()[scored],
            correct.double().cpu().numpy()[scored],
            np.zeros(len(targets)) if token_bytes is None else token_bytes[targets],
        )
    model.train(training)
    return tally.measurement(text=token_bytes is not None, reduce=lambda total: _reduce(total, accelerator))


def _reduce(total: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    if accelerator.num_processes == 1:
        return total
    summed = accelerator.reduce(torch.from_numpy(total).to(accelerator.device), reduction="sum")
    return summed.cpu().numpy()
