"""Measure a model on held-out sequences, position by position."""

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from icl_eval.models import LanguageModel
from icl_eval.positions import Measurement, log_bin_edges
from icl_eval.tasks import Source, TextSource


class ScoredLoss(nn.Module):
    """A language model as a function from tokens and targets to losses; the module that accelerate wraps."""

    def __init__(self, model: LanguageModel):
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, targets: Tensor, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Loss ``[B, T]`` in the task's unit, and whether the likeliest token is the target ``[B, T]`` (or NaN)."""
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
    edges = log_bin_edges(num_positions)
    num_bins = len(edges) - 1
    by_position = np.zeros((4, num_positions))
    by_document = np.zeros((4, len(documents) * num_bins))
    token_bytes = source.token_bytes() if isinstance(source, TextSource) else None
    for first in range(0, len(batches), accelerator.num_processes):
        mine = first + accelerator.process_index
        batch = batches[min(mine, len(batches) - 1)]
        read = (batch.tokens, batch.targets) if batch.inputs is None else (batch.tokens, batch.targets, batch.inputs)
        nll, correct = model(*(x.to(accelerator.device) for x in read))
        if mine >= len(batches):
            continue  # a sharded model needs every process whenever one calls it
        scored = batch.scored.numpy()
        values = nll.double().cpu().numpy()[scored]
        hits = correct.double().cpu().numpy()[scored]
        position = batch.position.numpy()[scored]
        row = np.searchsorted(documents, np.broadcast_to(batch.document.numpy()[:, None], scored.shape)[scored])
        cell = row * num_bins + np.searchsorted(edges, position, side="right") - 1
        for total, weights in zip(by_position, (values, values**2, hits, np.ones_like(values)), strict=True):
            total += np.bincount(position, weights, num_positions)
        size = np.zeros_like(values) if token_bytes is None else token_bytes[batch.targets.numpy()[scored]]
        for total, weights in zip(by_document, (values, hits, np.ones_like(values), size), strict=True):
            total += np.bincount(cell, weights, len(total))
    model.train(training)
    nll_sum, nll_square_sum, hit_sum, count = _reduce(by_position, accelerator)
    document_nll, document_hits, document_count, document_bytes = _reduce(by_document, accelerator).reshape(
        4, -1, num_bins
    )
    return Measurement(
        nll_sum=nll_sum,
        nll_square_sum=nll_square_sum,
        correct=hit_sum,
        count=count,
        documents=documents,
        bin_edges=edges,
        document_nll_sum=document_nll,
        document_correct=document_hits,
        document_count=document_count,
        document_bytes=None if token_bytes is None else document_bytes,
    )


def _reduce(total: np.ndarray, accelerator: Accelerator) -> np.ndarray:
    if accelerator.num_processes == 1:
        return total
    summed = accelerator.reduce(torch.from_numpy(total).to(accelerator.device), reduction="sum")
    return summed.cpu().numpy()
