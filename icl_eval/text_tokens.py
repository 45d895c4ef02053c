"""Text as a model reads it: tokens, what each of them spans, and the token that stands before a text."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tokenizers
from tokenizers import decoders

END_OF_TEXT = "<|endoftext|>"
NEWLINE = 10


class Encoded(NamedTuple):
    """A text in tokens.

    Attributes:
        tokens: int64 ``[T]``.
        start: int64 ``[T]``, bytes of UTF-8 before each token.
        size: int64 ``[T]``, bytes that each token stands for; they sum to the bytes of the text.
    """

    tokens: np.ndarray
    start: np.ndarray
    size: np.ndarray


class TextTokenizer(Protocol):
    """What reading and writing text with a model takes.

    Attributes:
        num_tokens: size of the vocabulary.
        prefix: token that a text is read after where nothing else stands before it.
        opens_documents: whether the model was trained to read the prefix before every text.
        end_of_text: token that ends a text, or ``None``.
        sha256: of the vocabulary; what two tokenisers of equal tokens share.
    """

    num_tokens: int
    prefix: int
    opens_documents: bool
    end_of_text: int | None
    sha256: str

    def encode(self, text: str) -> Encoded:
        """A text in tokens, nothing added."""

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; bytes that are not UTF-8 become U+FFFD."""


class ByteTokenizer:
    """Bytes of UTF-8 as tokens; a text that nothing stands before is read after a newline."""

    num_tokens = 256
    prefix = NEWLINE
    opens_documents = False
    end_of_text: int | None = None
    sha256 = "bytes"

    def encode(self, text: str) -> Encoded:
        tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int64)
        return Encoded(tokens, np.arange(len(tokens)), np.ones(len(tokens), np.int64))

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode(errors="replace")


class SubwordTokenizer:
    """A tokeniser of the ``tokenizers`` library.

    Args:
        tokenizer: the library's.
        prefix: token before a text, if the model was trained to read one; without it, the end-of-text token or else a
            newline stands there when something must.
        end_of_text: token that ends a text.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, prefix: int | None = None, end_of_text: int | None = None):
        self._tokenizer = tokenizer
        self.sha256 = hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()
        self.num_tokens = max(tokenizer.get_vocab().values()) + 1
        self.end_of_text = tokenizer.token_to_id(END_OF_TEXT) if end_of_text is None else end_of_text
        self.opens_documents = prefix is not None
        self._byte_level = isinstance(tokenizer.decoder, decoders.ByteLevel)
        self._unknown = getattr(tokenizer.model, "unk_token", None)
        newline = next(iter(tokenizer.encode("\n", add_special_tokens=False).ids), 0)
        self.prefix = next(token for token in (prefix, self.end_of_text, newline) if token is not None)

    @classmethod
    def from_file(cls, file: Path) -> "SubwordTokenizer":
        """The tokeniser of a ``tokenizer.json``.

        Raises:
            ValueError: it cannot be read.
        """
        try:
            return cls(tokenizers.Tokenizer.from_file(str(file)))
        except Exception as error:  # the library raises bare exceptions
            raise ValueError(f"cannot read {file}: {error}") from error

    def encode(self, text: str) -> Encoded:
        """A text in tokens, nothing added.

        Tokens of a byte-level vocabulary are spelt with a letter a byte. With others, a character of several tokens
        counts for the last of them.

        Raises:
            ValueError: the text has characters that the vocabulary lacks.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        tokens = np.array(encoding.ids, np.int64)
        unknown = None if self._unknown is None else self._tokenizer.token_to_id(self._unknown)
        if unknown is not None and (share := np.mean(tokens == unknown)) > 0:
            raise ValueError(
                f"{share:.1%} of the text's tokens are unknown to the tokeniser: its losses would leave out what it "
                "cannot read"
            )
        sizes = np.array([len(token) for token in encoding.tokens], np.int64)
        if self._byte_level and sizes.sum() == len(text.encode()):
            return Encoded(tokens, np.cumsum(sizes) - sizes, sizes)
        byte_at = np.cumsum([0, *(len(character.encode()) for character in text)])
        ends = np.array([end for _, end in encoding.offsets], np.int64)
        completes = np.diff(ends, append=len(text) + 1) > 0
        read = np.maximum.accumulate(np.where(completes, byte_at[ends], 0))
        read[-1:] = byte_at[-1]
        start = np.concatenate([[0], read])[:-1]
        return Encoded(tokens, start, read - start)

    def decode(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=True)
