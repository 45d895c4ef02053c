"""Long documents as windows of a fixed context length that never cross a document's border."""

import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from icl_eval.tasks.base import SPLITS, Batch, Split, generator, to_tensor
from icl_eval.tasks.text.cache import SHARD_BYTES, Shard, prepare
from icl_eval.tasks.text.sources import Reader
from icl_eval.tasks.text.tokenizers import BPE_TRAINING_BYTES, GPT2_TOKENS, ByteLevelBPE, from_json, token_dtype

FORMAT = 2
"""Raised whenever the same documents would be prepared otherwise: it makes older caches void."""


@dataclass(frozen=True, eq=False)
class Corpus:
    """Tokenised documents, end to end, shared by every seed, arm and context length.

    Attributes:
        tokens: unsigned, of all documents.
        documents: a row a document, training first: ``name``, ``split``, ``group``, ``bytes``, ``tokens``. The index
            numbers them in the order of ``tokens``.
        about: what the documents are, JSON-ready, ``sha256`` included; becomes part of the manifest.
        tokenizer: of the tokens, ``None`` where they are bytes.
    """

    tokens: np.ndarray
    documents: pd.DataFrame
    about: dict[str, Any]
    tokenizer: ByteLevelBPE | None = None

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        """Tokens of each document."""
        return self.documents["tokens"].to_numpy()

    @functools.cached_property
    def firsts(self) -> np.ndarray:
        """Where each document begins."""
        sizes = self.documents["tokens"]
        return (sizes.sort_index().cumsum()[sizes.index] - sizes).to_numpy()

    def members(self, split: Split) -> np.ndarray:
        """Indices of the documents of a split."""
        return np.flatnonzero(self.documents["split"] == split)

    def document(self, index: int) -> np.ndarray:
        """Tokens of a document."""
        return self.tokens[self.firsts[index] : self.firsts[index] + self.sizes[index]]


def text_corpus(reader: Reader) -> Corpus:
    """The documents of a reader with bytes as tokens, from the cache or into it."""

    def shards(done: int) -> Iterator[Shard]:
        rows, texts, size = [], [], 0
        for number, document in enumerate(reader.documents()):
            if number < done:
                continue
            text = document.text
            digest = hashlib.sha256(text).hexdigest()
            rows.append((document.name, document.split, document.group, len(text), len(text), digest))
            texts.append(text)
            size += len(text)
            if size >= SHARD_BYTES:
                yield Shard(rows, np.frombuffer(b"".join(texts), np.uint8))
                rows, texts, size = [], [], 0
        if rows:
            yield Shard(rows, np.frombuffer(b"".join(texts), np.uint8))

    def about(documents: pd.DataFrame) -> dict[str, Any]:
        digest = hashlib.sha256()
        for row in _training_first(documents)[["split", "group", "sha256"]].itertuples(index=False):
            digest.update("\0".join(row).encode() + b"\n")
        size = int(documents["bytes"].sum())
        return {**reader.about(), "documents": len(documents), "bytes": size, "sha256": digest.hexdigest()}

    key = _key("text", reader.key())
    opened = prepare(key, shards, np.dtype(np.uint8), about, what="reading text", total_bytes=reader.total_bytes)
    return Corpus(opened.tokens, _training_first(opened.documents), opened.about)


def _training_first(documents: pd.DataFrame) -> pd.DataFrame:
    """The documents of each split in the order they were read in, however the reader mixed the splits."""
    return documents.sort_values("split", key=lambda split: split.map(SPLITS.index), kind="stable")


def bpe_corpus(text: Corpus, vocab_size: int) -> Corpus:
    """The documents with a vocabulary trained on the training split, from the cache or into it."""
    key = _key("bpe", text.about["sha256"], str(vocab_size), str(BPE_TRAINING_BYTES))
    return _tokenised(text, key, vocab_size, lambda: ByteLevelBPE.train(training_texts(text), vocab_size))


def gpt2_corpus(text: Corpus, path: str) -> Corpus:
    """The documents in the tokens of GPT-2, from the cache or into it."""
    tokenizer = ByteLevelBPE.gpt2(path)
    key = _key("gpt2", text.about["sha256"], tokenizer.sha256)
    return _tokenised(text, key, GPT2_TOKENS, lambda: tokenizer)


def training_texts(text: Corpus, limit: int = BPE_TRAINING_BYTES) -> Iterator[str]:
    """The training documents, or the beginnings of all of them in proportion where they hold more bytes than that."""
    train = text.members("train")
    share = min(1.0, limit / max(int(text.sizes[train].sum()), 1))
    for index in train:
        document = text.document(index)
        yield document[: int(document.size * share)].tobytes().decode(errors="ignore")


def _tokenised(text: Corpus, key: str, num_tokens: int, make: Callable[[], ByteLevelBPE]) -> Corpus:
    """The documents of ``text`` in the tokens of a tokeniser that is only made where the cache lacks them."""
    tokenizer = functools.cache(make)

    def shards(done: int) -> Iterator[Shard]:
        columns = [text.documents[column] for column in ("name", "split", "group", "bytes", "sha256")]
        ends = text.sizes.cumsum()
        while done < len(ends):
            begin = ends[done] - text.sizes[done]
            stop = int(np.searchsorted(ends, begin + SHARD_BYTES)) + 1
            encoded = tokenizer().encode([text.document(i).tobytes() for i in range(done, min(stop, len(ends)))])
            rows = zip(*(column.iloc[done:stop] for column in columns), encoded, strict=True)
            yield Shard(
                [(name, split, group, size, len(tokens), digest) for name, split, group, size, digest, tokens in rows],
                np.concatenate(encoded),
            )
            done = stop

    def about(documents: pd.DataFrame) -> dict[str, Any]:
        return {"vocabulary": tokenizer().to_json()}

    total = int(text.sizes.sum())
    opened = prepare(key, shards, token_dtype(num_tokens), about, what="tokenising", total_bytes=total)
    learned = from_json(opened.about["vocabulary"])
    digest = hashlib.sha256(f"{text.about['sha256']}\0{learned.sha256}".encode()).hexdigest()
    vocabulary = {"tokens": learned.num_tokens, "sha256": learned.sha256}
    about_tokens = {**text.about, "text_sha256": text.about["sha256"], "sha256": digest, "vocabulary": vocabulary}
    return Corpus(opened.tokens, opened.documents, about_tokens, learned)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join((str(FORMAT), *parts)).encode()).hexdigest()[:24]


class WindowSource:
    """Windows of ``seq_len`` tokens of a corpus, each predicting the token that follows every one of its tokens.

    Training windows start anywhere, uniformly over all possible starts. Held-out windows do not overlap, start at an
    offset of their document's own (so that position carries no document structure), and come in rounds of one window
    per document, so that any prefix of them covers as many documents as it can. Documents of ``seq_len`` tokens or
    fewer are left out.

    Args:
        corpus, seq_len: what is read, and how many tokens at a time.
        seed: of the training windows.
        rolled_windows: held-out windows of every document, rolled, in place of those that do not overlap
            (see :class:`TextTask`).

    Raises:
        ValueError: no document of a split is long enough.
    """

    def __init__(self, corpus: Corpus, seq_len: int, seed: int, rolled_windows: int | None = None):
        self.corpus, self.seq_len, self.seed = corpus, seq_len, seed
        self._train = self._fitting("train")
        self._train_ends = np.cumsum(corpus.sizes[self._train] - seq_len)
        self._heldout = self._heldout_windows(rolled_windows)

    def _fitting(self, split: Split) -> np.ndarray:
        """Indices of the split's documents that hold a window."""
        members = self.corpus.members(split)
        sizes = self.corpus.sizes[members]
        if not (sizes > self.seq_len).any():
            longest = max(sizes, default=0)
            raise ValueError(
                f"seq_len = {self.seq_len}: no {split} document is longer (the longest has {longest:,} tokens)"
            )
        return members[sizes > self.seq_len]

    def _heldout_windows(self, rolled_windows: int | None) -> np.ndarray:
        """``[W, 2]``: document and first token of every held-out window, round by round."""
        windows = []
        for document in self._fitting("heldout"):
            random, size = generator(0, "heldout", int(document)), int(self.corpus.sizes[document])
            if rolled_windows is None:
                num_starts = size - self.seq_len
                offset = random.integers(0, (num_starts - 1) % self.seq_len + 1)
                starts = np.arange(offset, num_starts, self.seq_len)
            else:
                rolls = (np.arange(rolled_windows) + random.random()) / rolled_windows
                starts = random.permutation((rolls * size).astype(np.int64))
            windows += [(rank, document, self.corpus.firsts[document] + start) for rank, start in enumerate(starts)]
        return np.array(sorted(windows))[:, 1:]

    def _window(self, document: int, begin: int) -> np.ndarray:
        """``seq_len + 1`` tokens from ``begin`` on; those past the document's end are its first."""
        first, stop = self.corpus.firsts[document], begin + self.seq_len + 1
        end = min(stop, first + self.corpus.sizes[document])
        return np.concatenate([self.corpus.tokens[begin:end], self.corpus.tokens[first : first + stop - end]])

    def batch(self, split: Split, index: int, batch_size: int) -> Batch:
        if split == "heldout":
            end = (index + 1) * batch_size
            if end > len(self._heldout):
                raise ValueError(
                    f"batch {index} of {batch_size} sequences: the held-out split has {len(self._heldout)} sequences"
                )
            document, begin = self._heldout[end - batch_size : end].T
        else:
            pick = generator(self.seed, split, index).integers(0, self._train_ends[-1], batch_size)
            row = np.searchsorted(self._train_ends, pick, side="right")
            document = self._train[row]
            begin = self.corpus.firsts[document] + self._train_ends[row] - 1 - pick
        window = to_tensor(np.stack([self._window(*place) for place in zip(document, begin, strict=True)]))
        position = torch.arange(1, self.seq_len + 1).expand(batch_size, -1)
        return Batch(window[:, :-1], window[:, 1:], position > 0, position, to_tensor(document))

    def num_sequences(self, split: Split) -> int | None:
        return len(self._heldout) if split == "heldout" else None

    def token_bytes(self) -> np.ndarray:
        return np.ones(256, np.int64) if self.corpus.tokenizer is None else self.corpus.tokenizer.token_bytes

    def vocabulary(self) -> str | None:
        return None if self.corpus.tokenizer is None else self.corpus.tokenizer.to_json()

    def manifest(self) -> dict[str, Any]:
        """What the corpus is, its hash, per split what is used and left out at this length, and held-out groups.

        ``heldout_groups`` gives the numbers of the documents of each group (see ``Positions.of``).
        """
        splits = {}
        for split in SPLITS:
            sizes = self.corpus.sizes[self.corpus.members(split)]
            used = sizes[sizes > self.seq_len]
            splits[split] = {
                "documents": len(used),
                "tokens": int(used.sum()),
                "documents_left_out": len(sizes) - len(used),
                "tokens_left_out": int(sizes.sum() - used.sum()),
            }
        heldout = self.corpus.documents.iloc[self._fitting("heldout")]
        groups = {group: rows.index.tolist() for group, rows in heldout.groupby("group") if group}
        return {**self.corpus.about, "splits": splits, **({"heldout_groups": groups} if groups else {})}
