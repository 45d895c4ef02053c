"""Long documents as windows of a fixed context length that never cross a document's border."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from icl_eval.tasks.base import SPLITS, Batch, Split, generator, to_tensor


class Document(NamedTuple):
    """One document: its name, the split it belongs to and its tokens (one-dimensional, unsigned)."""

    name: str
    split: Split
    tokens: np.ndarray


class Corpus:
    """Tokenised documents, held once, end to end, and shared by every seed, arm and context length.

    Args:
        documents: in a fixed order; the corpus' hash is that of their names, splits and tokens, in this order.
        origin: what the documents are, JSON-ready; becomes part of the manifest.
    """

    def __init__(self, documents: Sequence[Document], origin: dict[str, Any]):
        self.tokens = np.concatenate([document.tokens for document in documents])
        self.sizes = np.array([document.tokens.size for document in documents])
        self.firsts = np.cumsum(self.sizes) - self.sizes
        self.heldout = np.array([document.split == "heldout" for document in documents])
        digest = hashlib.sha256()
        for document in documents:
            digest.update(f"{document.split}\0{document.name}\0{document.tokens.size}\0".encode())
        digest.update(self.tokens.data)
        self.origin = {**origin, "sha256": digest.hexdigest()}

    def members(self, split: Split) -> np.ndarray:
        """Indices of the documents of a split."""
        return np.flatnonzero(self.heldout == (split == "heldout"))


class WindowSource:
    """Windows of ``seq_len`` tokens of a corpus, each predicting the token that follows every one of its tokens.

    Training windows start anywhere, uniformly over all possible starts. Held-out windows do not overlap, start at an
    offset of their document's own (so that position carries no document structure), and come in rounds of one window
    per document, so that any prefix of them covers as many documents as it can. Documents of ``seq_len`` tokens or
    fewer are left out.

    Raises:
        ValueError: no document of a split is long enough.
    """

    def __init__(self, corpus: Corpus, seq_len: int, seed: int):
        self.corpus, self.seq_len, self.seed = corpus, seq_len, seed
        self._train = self._fitting("train")
        self._train_ends = np.cumsum(corpus.sizes[self._train] - seq_len)
        self._heldout = self._heldout_windows()

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

    def _heldout_windows(self) -> np.ndarray:
        """``[W, 2]``: document and first token of every held-out window, round by round."""
        windows = []
        for document in self._fitting("heldout"):
            num_starts = self.corpus.sizes[document] - self.seq_len
            spare = (num_starts - 1) % self.seq_len
            offset = generator(0, "heldout", int(document)).integers(0, spare + 1)
            starts = self.corpus.firsts[document] + np.arange(offset, num_starts, self.seq_len)
            windows += [(rank, document, start) for rank, start in enumerate(starts)]
        return np.array(sorted(windows))[:, 1:]

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
        window = to_tensor(self.corpus.tokens[begin[:, None] + np.arange(self.seq_len + 1)])
        position = torch.arange(1, self.seq_len + 1).expand(batch_size, -1)
        return Batch(window[:, :-1], window[:, 1:], position > 0, position, to_tensor(document))

    def num_sequences(self, split: Split) -> int | None:
        return len(self._heldout) if split == "heldout" else None

    def token_bytes(self) -> np.ndarray:
        return np.ones(256, np.int64)

    def vocabulary(self) -> None:
        return None

    def manifest(self) -> dict[str, Any]:
        """Origin and hash of the corpus, and per split the documents and tokens used and left out at this length."""
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
        return {**self.corpus.origin, "splits": splits}
