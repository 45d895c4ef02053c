"""Score long sequences piece by piece: no more logits than :data:`LOGIT_ELEMENTS` exist at a time."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from icl_eval.causal import CausalModel

LOGIT_ELEMENTS = 2**26
MAX_CHUNK = 1024
BATCH_TOKENS = 2**15
Item = TypeVar("Item")
Result = TypeVar("Result")


def chunk_tokens(model: CausalModel, batch_size: int) -> int:
    """Tokens of a sequence that are read at a time."""
    return int(np.clip(LOGIT_ELEMENTS // (model.vocab_size * batch_size), 16, MAX_CHUNK))


class Scores(NamedTuple):
    """Losses of a batch of sequences.

    Attributes:
        nll: float64 ``[B, T]`` nats; 0 where not scored.
        greedy: bool ``[B, T]``, whether the token is the likeliest; ``False`` where not scored.
        state_elements: what the model carried for one sequence at the end.
    """

    nll: np.ndarray
    greedy: np.ndarray
    state_elements: int


def score(model: CausalModel, tokens: Tensor, *, first: int = 1, chunk: int | None = None) -> Scores:
    """Negative log-likelihood of every token given those before it, read in pieces with the state carried.

    Args:
        model: what reads.
        tokens: int64 ``[B, T]`` on the CPU; rows may end in padding, which changes nothing before it.
        first: first token to be scored, at least 1.
        chunk: tokens read at a time; as many as memory suggests if not given.
    """
    B, T = tokens.shape
    nll, greedy = np.zeros((B, T)), np.zeros((B, T), bool)
    size = chunk or chunk_tokens(model, B)
    state: Any = None
    for begin in range(0, T - 1, size):
        end = min(begin + size, T - 1)
        wanted = end >= first
        logits, state = model.read(tokens[:, begin:end].to(model.device), state, logits=wanted, context=T - 1)
        if logits is None:
            continue
        skip = max(first - 1 - begin, 0)
        targets = tokens[:, begin + 1 + skip : end + 1].to(model.device)
        scores = logits[:, skip:].float()
        losses = F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
        nll[:, begin + 1 + skip : end + 1] = losses.double().cpu().numpy()
        greedy[:, begin + 1 + skip : end + 1] = (scores.argmax(-1) == targets).cpu().numpy()
    return Scores(nll, greedy, model.state_elements(state, T - 1) if T > 1 else 0)


def in_batches(
    work: Callable[[Sequence[Item]], Sequence[Result]],
    items: Sequence[Item],
    sizes: Callable[[Item], int],
    *,
    most: int | None = None,
    limit: int = BATCH_TOKENS,
) -> list[Result]:
    """``work`` on batches of items, padding included no more than ``limit`` tokens; where memory runs out, on half.

    Args:
        work: gives a result an item.
        items: in the order in which they are batched; long ones next to each other waste least padding.
        sizes: tokens of an item.
        most: items of a batch.
        limit: tokens of a batch; one item at least is always tried.

    Raises:
        ValueError: one item alone does not fit into memory.
    """
    results: list[Result] = []
    while len(results) < len(items):
        batch: list[Item] = []
        longest = 0
        for item in items[len(results) :]:
            longest = max(longest, sizes(item))
            if batch and (len(batch) == most or longest * (len(batch) + 1) > limit):
                break
            batch.append(item)
        try:
            results += work(batch)
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            size = max(map(sizes, batch))
            if len(batch) == 1:
                raise ValueError(f"a sequence of {size:,} tokens does not fit into memory, even alone") from error
            torch.cuda.empty_cache()
            most = len(batch) // 2
            warnings.warn(
                f"out of memory with {len(batch)} sequences of up to {size:,} tokens: going on with {most} at a time",
                stacklevel=2,
            )
    return results


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def padded(rows: Sequence[np.ndarray]) -> Tensor:
    """Rows of tokens as int64 ``[B, T]``, filled up with token 0 on the right."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = torch.from_numpy(values)
    return tokens
