"""LongCrawl64: Zarr arrays of web documents in GPT-2's tokens, all of one length."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from icl_eval.config import location
from icl_eval.tasks.base import SPLITS, Batch, Split, Task, generator, to_tensor
from icl_eval.tasks.text.tokenizers import END_OF_TEXT, GPT2_TOKENS, ByteLevelBPE, TokenizerName

LOOKED_AT = 1024
"""Rows of each split, evenly spread, that are looked at and hashed before anything is trained."""


@dataclass(frozen=True, kw_only=True)
class LongCrawl64(Task):
    """Next-token prediction on LongCrawl64 (Buckman, 2024): rows of 65,536 GPT-2 tokens, rolled by random amounts.

    A sequence is a slice ``[k · seq_len, (k + 1) · seq_len)`` of a row; the inputs are shifted right by one, with the
    end-of-text token first. With ``seq_len=4``, the second slice of a row is

        row       …  11  12  13  14 | 15  16  17  18 | …
        tokens                       50256 15  16  17
        targets                        15  16  17  18
        position                        1   2   3   4

    Needs the extra ``longcrawl64``.

    Attributes:
        path: a folder with ``train.zarr`` and ``heldout.zarr``, documents × tokens.
        tokenizer_path: a folder with GPT-2's ``encoder.json`` and ``vocab.bpe``; without it, losses are in nats per
            token only.
    """

    name: ClassVar[str] = "longcrawl64"
    version: ClassVar[int] = 1
    tokenizer: ClassVar[TokenizerName] = "gpt2"
    vocab_size: ClassVar[None] = None

    path: str = location()
    tokenizer_path: str | None = location(default=None)

    def __post_init__(self) -> None:
        self.require(self.seq_len >= 1, "seq_len", "at least 1")

    @property
    def num_tokens(self) -> int:
        return GPT2_TOKENS

    def build(self, seed: int) -> "LongCrawl64Source":
        return LongCrawl64Source(self, seed)


class LongCrawl64Source:
    """Slices of rows: training ones uniformly at random, held-out ones in rounds of one a row.

    Raises:
        ValueError: the arrays are not there, shorter than the context, not of GPT-2's tokens, or hold rows of zeros.
    """

    def __init__(self, task: LongCrawl64, seed: int):
        self.task, self.seed = task, seed
        self.files = {split: Path(task.path).expanduser() / f"{split}.zarr" for split in SPLITS}
        self.arrays = {split: _open_array(file) for split, file in self.files.items()}
        for split, array in self.arrays.items():
            if array.shape[1] < task.seq_len:
                raise ValueError(f"seq_len = {task.seq_len}: the rows of {split}.zarr hold {array.shape[1]:,} tokens")
        self._hashes = [_hash_of_rows(file) for file in self.files.values()]

    def batch(self, split: Split, index: int, batch_size: int) -> Batch:
        T, array = self.task.seq_len, self.arrays[split]
        num_rows, num_slices = array.shape[0], array.shape[1] // T
        if split == "heldout":
            number = index * batch_size + np.arange(batch_size)
            if number[-1] >= num_rows * num_slices:
                raise ValueError(
                    f"batch {index} of {batch_size} sequences: the held-out split has {num_rows * num_slices} sequences"
                )
            part, row = np.divmod(number, num_rows)
        else:
            rng = generator(self.seed, split, index)
            row, part = rng.integers(0, num_rows, batch_size), rng.integers(0, num_slices, batch_size)
        targets = np.stack([array[r, k * T : (k + 1) * T] for r, k in zip(row.tolist(), part.tolist(), strict=True)])
        empty = row[~targets.any(axis=1)]
        if len(empty):
            raise ValueError(
                f"{self.files[split]}: {len(empty)} of {batch_size} sequences hold nothing but zeros, "
                f"the first of them in row {empty[0]}: this copy is incomplete"
            )
        tokens = np.concatenate([np.full((batch_size, 1), END_OF_TEXT, targets.dtype), targets[:, :-1]], axis=1)
        position = torch.arange(1, T + 1).expand(batch_size, -1)
        return Batch(to_tensor(tokens), to_tensor(targets), position > 0, position, to_tensor(row))

    def num_sequences(self, split: Split) -> int | None:
        rows, length = self.arrays[split].shape
        return rows * (length // self.task.seq_len) if split == "heldout" else None

    @functools.cached_property
    def _gpt2(self) -> ByteLevelBPE | None:
        return None if self.task.tokenizer_path is None else ByteLevelBPE.gpt2(self.task.tokenizer_path)

    def token_bytes(self) -> np.ndarray | None:
        return None if self._gpt2 is None else self._gpt2.token_bytes

    def vocabulary(self) -> str | None:
        return None if self._gpt2 is None else self._gpt2.to_json()

    def manifest(self) -> dict[str, Any]:
        """Documents of each split, and a hash of the shapes and of the rows looked at."""
        documents = {split: array.shape[0] for split, array in self.arrays.items()}
        digest = hashlib.sha256("\n".join(self._hashes).encode()).hexdigest()
        return {"corpus": "LongCrawl64", "sha256": digest, "documents": documents}


def _open_array(file: Path) -> Any:
    """The Zarr array of a split, format 2 or 3.

    Raises:
        ValueError: zarr is not installed, or there is no such array, or not of documents × GPT-2 tokens.
    """
    try:
        import zarr
    except ImportError:
        raise ValueError(
            "longcrawl64 needs zarr, which the extra installs: pip install 'icl-eval[longcrawl64]'"
        ) from None
    try:
        array = zarr.open_array(file, mode="r")
    except Exception as error:  # what zarr raises has no common base
        raise ValueError(f"path = {str(file.parent)!r}: cannot open {file.name}: {error}") from error
    if array.ndim != 2 or array.shape[0] == 0 or array.dtype != np.uint16:
        raise ValueError(f"{file}: must be uint16, documents by tokens, not {array.dtype} of shape {array.shape}")
    return array


@functools.lru_cache(maxsize=8)
def _hash_of_rows(file: Path) -> str:
    """Hash of a split's shape and of its rows, or of :data:`LOOKED_AT` of them.

    Raises:
        ValueError: some of them are all zero, or hold what is no token of GPT-2.
    """
    array = _open_array(file)
    digest = hashlib.sha256(str(array.shape).encode())
    numbers = np.unique(np.linspace(0, array.shape[0] - 1, LOOKED_AT).astype(int))
    empty = []
    for number in numbers.tolist():
        row = array[number]
        if row.max() >= GPT2_TOKENS:
            raise ValueError(f"{file}: row {number} holds token {row.max()}, and GPT-2 has {GPT2_TOKENS:,}")
        if not row.any():
            empty.append(number)
        digest.update(row.tobytes())
    if empty:
        raise ValueError(
            f"{file}: {len(empty)} of the {len(numbers)} rows looked at (of {array.shape[0]:,}) hold nothing but "
            f"zeros, the first of them row {empty[0]}: this copy is incomplete"
        )
    return digest.hexdigest()
