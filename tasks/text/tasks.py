"""Language modelling on long documents as tasks: one class a source of documents."""

import functools
import json
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from icl_eval.config import location
from icl_eval.tasks.base import Task
from icl_eval.tasks.text.corpus import Corpus, WindowSource, bpe_corpus, gpt2_corpus, text_corpus
from icl_eval.tasks.text.source_code import SourceCodeReader
from icl_eval.tasks.text.sources import FileReader, HubReader, Reader
from icl_eval.tasks.text.tokenizers import GPT2_TOKENS, TokenizerName

FROZEN = "corpus.json"
"""What ``icl-eval data export`` writes beside the documents: what they are, and their hash."""


@dataclass(frozen=True, kw_only=True)
class TextTask(Task):
    """Next-token prediction on long documents. With ``seq_len=8`` and bytes, a window of some document is

        tokens     d  e  f  _  m  a  i  n
        targets    e  f  _  m  a  i  n  (
        scored     1  1  1  1  1  1  1  1
        position   1  2  3  4  5  6  7  8

    Documents of ``seq_len`` tokens or fewer are left out and counted.

    Attributes:
        tokenizer: ``"bytes"``; ``"bpe"``, a byte-level BPE trained on the training split (50 MB of it at most), which
            is stored with the run; or ``"gpt2"``, that of GPT-2.
        vocab_size: of ``"bpe"``.
        tokenizer_path: of ``"gpt2"``: a folder with ``encoder.json`` and ``vocab.bpe``.
        rolled_windows: held-out windows of every document, which is rolled for each of them: what its end leaves out
            of a window is read from its beginning. Rolls are evenly spread, so that every position reads all parts of
            a document alike, and losses by position differ by what the context is worth, not by the text that happens
            to stand there. ``None`` takes as many windows as fit without overlap, unrolled.
    """

    tokenizer: TokenizerName = "bytes"
    vocab_size: int | None = None
    tokenizer_path: str | None = location(default=None)
    rolled_windows: int | None = None

    def __post_init__(self) -> None:
        self.require(self.seq_len >= 1, "seq_len", "at least 1")
        self.require(
            self.rolled_windows is None or self.rolled_windows >= 1, "rolled_windows", "at least 1 a document, or None"
        )
        self.require(self.tokenizer in ("bytes", "bpe", "gpt2"), "tokenizer", "'bytes', 'bpe' or 'gpt2'")
        if self.tokenizer == "bpe":
            self.require(
                self.vocab_size is not None and 257 <= self.vocab_size <= 2**20,
                "vocab_size",
                "between 257 and 1,048,576, with tokenizer = 'bpe'",
            )
        else:
            self.require(self.vocab_size is None, "vocab_size", f"None with tokenizer = {self.tokenizer!r}")
        self.require(
            (self.tokenizer_path is not None) == (self.tokenizer == "gpt2"),
            "tokenizer_path",
            "a folder with encoder.json and vocab.bpe if tokenizer = 'gpt2', and None otherwise",
        )

    @property
    def num_tokens(self) -> int:
        return {"bytes": 256, "bpe": self.vocab_size or 0, "gpt2": GPT2_TOKENS}[self.tokenizer]

    @abstractmethod
    def reader(self) -> Reader:
        """The documents."""

    def text(self) -> Corpus:
        """The documents as bytes, prepared if the cache lacks them."""
        return text_corpus(self.reader())

    def corpus(self) -> Corpus:
        """The documents in this task's tokens, prepared if the cache lacks them."""
        text = self.text()
        if self.tokenizer == "bpe":
            return bpe_corpus(text, self.num_tokens)
        return text if self.tokenizer_path is None else gpt2_corpus(text, self.tokenizer_path)

    def build(self, seed: int) -> WindowSource:
        return WindowSource(self.corpus(), self.seq_len, seed, self.rolled_windows)


@dataclass(frozen=True, kw_only=True)
class Files(TextTask):
    """Next-token prediction on documents of one's own: text files, JSON lines or Parquet, ``.gz``, ``.xz`` or ``.zst``.

    A text file is a document, and so is a row of the others. What the documents say decides about the numbers, not
    where they lie: the same files elsewhere give runs of the same name.

    Attributes:
        path: a file, or a folder of ``.txt``, ``.md``, ``.jsonl``, ``.parquet`` and the like. If a folder has entries
            called ``train…`` and ``heldout…``, they are the splits, and all else in it is passed over.
        heldout_path: the held-out documents, where they lie apart.
        heldout_fraction: share of the documents held out, by a hash of their text, where nothing else splits them.
        text_field: of a row.
        group_field: of a row, where it has one: groups of held-out documents stand in the manifest.
    """

    name: ClassVar[str] = "files"
    version: ClassVar[int] = 2

    path: str = location()
    heldout_path: str | None = location(default=None)
    heldout_fraction: float = 0.1
    text_field: str = "text"
    group_field: str = "source"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.heldout_fraction < 1, "heldout_fraction", "between 0 and 1")

    def reader(self) -> FileReader:
        return FileReader(
            Path(self.path).expanduser(),
            None if self.heldout_path is None else Path(self.heldout_path).expanduser(),
            self.heldout_fraction,
            self.text_field,
            self.group_field,
        )

    def text(self) -> Corpus:
        corpus, frozen = super().text(), Path(self.path).expanduser() / FROZEN
        if frozen.is_file() and json.loads(frozen.read_text())["sha256"] != corpus.about["sha256"]:
            raise ValueError(f"path = {self.path!r}: the documents are not those whose hash stands in {FROZEN}")
        return corpus


@dataclass(frozen=True, kw_only=True)
class Hub(TextTask):
    """Next-token prediction on a data set of the hub, by name: a row is a document. The first reading needs a network.

    What was read stays in the cache; ``icl-eval data export`` makes files of it that others can be given.

    Attributes:
        dataset: its name, such as ``"owner/name"``, or a local folder that ``datasets`` understands.
        config: of the data set.
        revision: a commit of the data set, without which it may change.
        split: the rows to train on.
        heldout_split: the rows to hold out, where the data set has them.
        heldout_fraction: share of ``split`` held out, by a hash of the text, where it has not.
        text_field: the column of the text.
        group_field: the column of the groups that the manifest lists, where there is one.
        max_bytes: text to read of each split; ``None`` for all of it.
    """

    name: ClassVar[str] = "hub"
    version: ClassVar[int] = 2

    dataset: str
    config: str | None = None
    revision: str | None = None
    split: str = "train"
    heldout_split: str | None = None
    heldout_fraction: float = 0.1
    text_field: str = "text"
    group_field: str = "source"
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.heldout_fraction < 1, "heldout_fraction", "between 0 and 1")
        self.require(self.max_bytes is None or self.max_bytes > self.seq_len, "max_bytes", "more than seq_len, or None")

    def reader(self) -> HubReader:
        return HubReader(
            self.dataset,
            self.config,
            self.revision,
            (self.split, self.heldout_split),
            self.heldout_fraction,
            self.text_field,
            self.group_field,
            self.max_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class SourceCode(TextTask):
    """Next-token prediction on the standard library and site-packages of the running interpreter, or on wheels.

    Every top-level package or module, or every wheel, is a document: its ``.py`` files in path order, one after the
    other, cut at ``max_document_bytes``. A package is held out if a hash of its name falls below ``heldout_fraction``,
    so the split does not change when other packages come or go; files that also stand in a training document, such as
    vendored copies, are left out of held-out ones. The interpreter's corpus is always there, but differs between
    environments: its hash identifies it, and ``icl-eval data export`` freezes it.

    Attributes:
        max_document_bytes: cut of a document, so that no package dominates.
        heldout_fraction: share of the packages held out.
        wheels: a folder of wheels to read in place of the running interpreter's packages.
    """

    name: ClassVar[str] = "source_code"
    version: ClassVar[int] = 2

    max_document_bytes: int = 524_288
    heldout_fraction: float = 0.15
    wheels: str | None = location(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.max_document_bytes > self.seq_len, "max_document_bytes", f"more than seq_len = {self.seq_len}"
        )
        self.require(0 < self.heldout_fraction < 1, "heldout_fraction", "between 0 and 1")

    def reader(self) -> SourceCodeReader:
        wheels = None if self.wheels is None else Path(self.wheels).expanduser()
        return _source_code(self.max_document_bytes, self.heldout_fraction, wheels)


@functools.lru_cache(maxsize=2)
def _source_code(max_document_bytes: int, heldout_fraction: float, wheels: Path | None) -> SourceCodeReader:
    return SourceCodeReader(max_document_bytes, heldout_fraction, wheels)
