"""Measure any causal model on spans of text, by position in bytes and in tokens."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from icl_eval.causal import CausalModel
from icl_eval.positions import Measurement
from icl_eval.scoring import in_batches, padded, score
from icl_eval.spans import Span
from icl_eval.tally import Tally
from icl_eval.text_tokens import Encoded, TextTokenizer


class TextMeasurement(NamedTuple):
    """Losses of one model on spans of text.

    Attributes:
        bytes, tokens: by bytes, and by tokens of text, that stand before the predicted token.
        state_elements: what the model carries at the end of the longest span.
        num_tokens: tokens of all spans.
    """

    bytes: Measurement
    tokens: Measurement
    state_elements: int
    num_tokens: int


class _Read(NamedTuple):
    """A span in tokens, and how many tokens stand before it."""

    document: int
    encoded: Encoded
    prefix: list[int]

    @property
    def sequence(self) -> np.ndarray:
        return np.concatenate([np.array(self.prefix, np.int64), self.encoded.tokens])


def measure_text(
    model: CausalModel, tokenizer: TextTokenizer, spans: Sequence[Span], *, name: str, chunk: int | None = None
) -> TextMeasurement:
    """Losses (nats) of every token of the spans that something stands before, and the bytes that they stand for.

    The first token of a span counts only for models that were trained to read a token before every text.

    Args:
        name: of the model, for messages.
        chunk: tokens read at a time; as many as memory suggests if not given.

    Raises:
        ValueError: the model cannot read as much, or its loss is not finite.
    """
    prefix = [tokenizer.prefix] if tokenizer.opens_documents else []
    reads = [_Read(span.document, tokenizer.encode(span.text), prefix) for span in spans]
    longest = max(len(read.sequence) for read in reads) - 1
    if model.max_context is not None and longest > model.max_context:
        raise ValueError(
            f"{name} reads {model.max_context:,} tokens at most (its positions are a table), and this context comes to "
            f"{longest:,}: lower --context"
        )
    documents = np.unique([span.document for span in spans])
    most_bytes, most_tokens = max(len(span.text.encode()) for span in spans), max(len(r.encoded.tokens) for r in reads)
    by_bytes, by_tokens = Tally(documents, most_bytes), Tally(documents, most_tokens)
    state_elements = 0

    def work(batch: Sequence[_Read]) -> list[None]:
        nonlocal state_elements
        scores = score(model, padded([read.sequence for read in batch]), chunk=chunk)
        state_elements = max(state_elements, scores.state_elements)
        for row, read in enumerate(batch):
            inputs = slice(1, len(read.sequence))
            tokens, start, size = read.encoded
            scored = slice(1 - len(prefix), None)
            nll, correct = scores.nll[row, inputs], scores.greedy[row, inputs].astype(float)
            document = np.full(len(nll), read.document)
            by_bytes.add(document, start[scored], nll, correct, size[scored])
            by_tokens.add(document, np.arange(len(tokens))[scored], nll, correct, size[scored])
        return [None] * len(batch)

    in_batches(work, sorted(reads, key=_size, reverse=True), _size)
    if not np.isfinite(by_bytes.measurement(text=True).nll_sum.sum()):
        raise ValueError(f"{name}: its loss is not finite on these documents")
    return TextMeasurement(
        by_bytes.measurement(text=True),
        by_tokens.measurement(text=True),
        state_elements,
        sum(len(read.encoded.tokens) for read in reads),
    )


def _size(read: _Read) -> int:
    return len(read.sequence)
