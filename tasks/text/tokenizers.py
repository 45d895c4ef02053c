"""Byte-level BPE: trained on a corpus, or GPT-2's own from local files. Bytes as tokens need no tokeniser."""

import functools
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

TokenizerName = Literal["bytes", "bpe", "gpt2"]
BPE_TRAINING_BYTES = 50_000_000
GPT2_TOKENS = 50_257
END_OF_TEXT = 50_256
"""GPT-2's token between documents, the last of its vocabulary; it stands for no text."""
_PIECE_CHARACTERS, _PIECES_AT_A_TIME = 2**17, 64
_BORDER = re.compile(r"\S(?=[ \n])")
"""GPT-2's pattern never joins what is not space to a space that follows: cut there, a text has the same tokens."""


class ByteLevelBPE:
    """Tokens of the ``tokenizers`` library, with what each of them stands for.

    Attributes:
        num_tokens: size of the vocabulary.
        dtype: of its tokens.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer):
        self._tokenizer = tokenizer
        self.num_tokens = tokenizer.get_vocab_size()
        self.dtype = token_dtype(self.num_tokens)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> "ByteLevelBPE":
        """A vocabulary learned from texts: the 256 bytes and their most frequent merges.

        Raises:
            ValueError: the texts do not hold that many merges.
        """
        tokenizer = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
        )
        tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text.encode())), trainer)
        if tokenizer.get_vocab_size() < vocab_size:
            raise ValueError(
                f"vocab_size = {vocab_size}: the training documents yield {tokenizer.get_vocab_size():,} tokens only"
            )
        return cls(tokenizer)

    @classmethod
    def gpt2(cls, path: str) -> "ByteLevelBPE":
        """GPT-2's vocabulary from a folder with ``encoder.json`` and ``vocab.bpe`` (or ``vocab.json``, ``merges.txt``).

        Raises:
            ValueError: the files are not there, or not GPT-2's.
        """
        pairs = ("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")
        found = [pair for pair in pairs if all((Path(path) / name).is_file() for name in pair)]
        if not found:
            raise ValueError(
                f"tokenizer_path = {path!r}: must be a folder with GPT-2's encoder.json and vocab.bpe "
                "(or vocab.json and merges.txt)"
            )
        vocab, merges = (str(Path(path) / name) for name in found[0])
        try:
            tokenizer = _byte_level(models.BPE(*models.BPE.read_file(vocab, merges)))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"tokenizer_path = {path!r}: {error}") from error
        marks = {"<|endoftext|>": END_OF_TEXT, "Ġthe": 262}
        if tokenizer.get_vocab_size() != GPT2_TOKENS or any(tokenizer.token_to_id(t) != i for t, i in marks.items()):
            raise ValueError(f"tokenizer_path = {path!r}: these files hold another vocabulary than GPT-2's")
        return cls(tokenizer)

    def encode(self, texts: list[bytes]) -> list[np.ndarray]:
        """Tokens of each text, all cores at work; a long text is cut where that changes no token."""
        parts: list[list[np.ndarray]] = [[] for _ in texts]
        cut = ((index, piece) for index, text in enumerate(texts) for piece in pieces(text))
        while batch := list(itertools.islice(cut, _PIECES_AT_A_TIME)):
            encodings = self._tokenizer.encode_batch_fast([piece for _, piece in batch])
            for (index, _), encoding in zip(batch, encodings, strict=True):
                parts[index].append(np.array(encoding.ids, self.dtype))
        return [np.concatenate(arrays) for arrays in parts]

    def decode(self, tokens: np.ndarray) -> str:
        return self._tokenizer.decode(tokens.tolist(), skip_special_tokens=False)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        """Bytes each token stands for, int64 ``[num_tokens]``: byte-level tokens are spelt with a letter a byte."""
        sizes = np.zeros(self.num_tokens, np.int64)
        for token, number in self._tokenizer.get_vocab().items():
            sizes[number] = 0 if token == "<|endoftext|>" else len(token)
        return sizes

    def to_json(self) -> str:
        """The contents of a ``tokenizer.json``."""
        return self._tokenizer.to_str(pretty=False)

    @functools.cached_property
    def sha256(self) -> str:
        """Of vocabulary and merges, whatever version of the library wrote them."""
        model = json.loads(self.to_json())["model"]
        content = json.dumps([model["vocab"], model["merges"]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def token_dtype(num_tokens: int) -> np.dtype:
    """The smallest unsigned integers that hold a vocabulary."""
    return np.dtype(np.uint16 if num_tokens <= 2**16 else np.uint32)


def from_json(text: str) -> ByteLevelBPE:
    """The tokeniser that :meth:`ByteLevelBPE.to_json` wrote."""
    return ByteLevelBPE(tokenizers.Tokenizer.from_str(text))


def pieces(text: bytes) -> Iterator[str]:
    """A text cut into parts of about :data:`_PIECE_CHARACTERS`, tokenised apart as they are together."""
    begin, size = 0, _PIECE_CHARACTERS
    while begin < len(text):
        piece = text[begin : begin + size].decode(errors="ignore")
        if begin + size < len(text):
            border = max((m.end() for m in _BORDER.finditer(piece, max(len(piece) - 2**14, 0))), default=None)
            if border is None:
                size *= 2
                continue
            piece = piece[:border]
        yield piece
        begin, size = begin + len(piece.encode()), _PIECE_CHARACTERS


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
