"""Spans of documents: one text for all models, however they cut it into tokens."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from icl_eval.tasks.base import generator
from icl_eval.tasks.text.corpus import Corpus
from icl_eval.text_tokens import TextTokenizer

MIN_DOCUMENTS = 4
_BYTES_A_TOKEN = 8


class Span(NamedTuple):
    """A piece of a document that every model reads: the document's number and the text."""

    document: int
    text: str


def choose_spans(
    corpus: Corpus,
    tokenizers: Sequence[TextTokenizer],
    *,
    context: int,
    unit: Literal["tokens", "bytes"] = "tokens",
    split: Literal["heldout", "all"] = "heldout",
    most: int = 256,
) -> list[Span]:
    """Spans that do not overlap, in rounds of one a document, starting at an offset of the document's own.

    Documents that are too short are left out.

    Args:
        corpus: documents as bytes.
        tokenizers: of all models.
        context: what a model has seen when it meets a span's last token.
        unit: of ``context``. Spans of bytes are the same whatever models read them; spans of tokens end where the
            first of the tokenisers has come to that many.
        split: which documents.
        most: number of spans.

    Raises:
        ValueError: fewer than :data:`MIN_DOCUMENTS` documents are long enough.
    """

    def cut(content: bytes) -> str | None:
        """The span at the beginning of a document's rest."""
        if unit == "bytes":
            return content[: context + 1].decode(errors="ignore") if len(content) > context else None
        return _of_tokens(content, tokenizers, context)

    documents = corpus.members("heldout") if split == "heldout" else np.arange(len(corpus.sizes))
    found = [
        (rank, document, text)
        for document in documents.tolist()
        for rank, text in enumerate(_cut_up(corpus.document(document).tobytes(), cut, document))
    ]
    chosen = [Span(document, text) for _, document, text in sorted(found)[:most]]
    fitting = len({span.document for span in chosen})
    if fitting < MIN_DOCUMENTS:
        longest = max(corpus.sizes[documents].tolist(), default=0)
        raise ValueError(
            f"{fitting} of {len(documents)} documents ({split}) hold a context of {context:,} {unit}, too few to "
            f"resample: at least {MIN_DOCUMENTS} are needed (the longest document has {longest:,} bytes)"
        )
    return chosen


def hash_of(spans: Sequence[Span]) -> str:
    """Hash of the texts and of which document each belongs to."""
    digest = hashlib.sha256()
    for document, text in spans:
        digest.update(f"{document}\0{text}\0".encode())
    return digest.hexdigest()


def _cut_up(content: bytes, cut: Callable[[bytes], str | None], document: int) -> list[str]:
    """The spans of a document, in order; they start at an offset, so that position carries no document structure."""
    first = cut(content)
    if first is None:
        return []
    size = len(first.encode())
    begin = int(generator(0, "heldout", document).integers(0, min(len(content) - size, size) + 1))
    texts = []
    while (text := cut(content[_character(content, begin) :])) is not None:
        texts.append(text)
        begin = _character(content, begin) + len(text.encode())
    return texts or [first]


def _character(content: bytes, begin: int) -> int:
    """Where the next character begins."""
    while begin < len(content) and content[begin] & 0xC0 == 0x80:
        begin += 1
    return begin


def _of_tokens(content: bytes, tokenizers: Sequence[TextTokenizer], context: int) -> str | None:
    """The shortest beginning in which a tokeniser has ``context`` tokens and one more; ``None`` if none has."""
    size = _BYTES_A_TOKEN * context
    while True:
        text = content[:size].decode(errors="ignore")
        encoded = [tokenizer.encode(text) for tokenizer in tokenizers]
        ends = [e.start[context] + e.size[context] for e in encoded if len(e.tokens) > context + 1]
        if ends:
            break
        if size >= len(content):
            return None
        size *= 2
    text = text.encode()[: min(ends)].decode(errors="ignore")
    while any(len(tokenizer.encode(text).tokens) > context + 1 for tokenizer in tokenizers):
        text = text[:-1]
    return text
