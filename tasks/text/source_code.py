"""The embedded corpus: the Python source of the running interpreter, one document a package, bytes as tokens."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from icl_eval.tasks.base import Split, Task
from icl_eval.tasks.text.corpus import Corpus, Document, WindowSource


@dataclass(frozen=True, kw_only=True)
class SourceCode(Task):
    """Next-byte prediction on the standard library and site-packages of the running interpreter.

    Every top-level package or module is a document: its ``.py`` files in path order, one after the other, cut at
    ``max_document_bytes``. A package is held out if a hash of its name falls below ``heldout_fraction``, so the split
    does not change when other packages come or go. The corpus is always there, but differs between environments: its
    manifest (files, bytes, hash) identifies it. With ``seq_len=8``, a window of some document is

        tokens     d  e  f  _  m  a  i  n
        targets    e  f  _  m  a  i  n  (
        scored     1  1  1  1  1  1  1  1
        position   1  2  3  4  5  6  7  8

    Attributes:
        max_document_bytes: cut of a document, so that no package dominates.
        heldout_fraction: share of the packages held out.
    """

    name: ClassVar[str] = "source_code"
    version: ClassVar[int] = 1

    max_document_bytes: int = 524_288
    heldout_fraction: float = 0.15

    def __post_init__(self) -> None:
        self.require(self.seq_len >= 1, "seq_len", "at least 1")
        self.require(
            self.max_document_bytes > self.seq_len, "max_document_bytes", f"more than seq_len = {self.seq_len}"
        )
        self.require(0 < self.heldout_fraction < 1, "heldout_fraction", "between 0 and 1")

    @property
    def num_tokens(self) -> int:
        return 256

    def build(self, seed: int) -> WindowSource:
        return WindowSource(_corpus(self.max_document_bytes, self.heldout_fraction), self.seq_len, seed)


@functools.lru_cache(maxsize=2)
def _corpus(max_document_bytes: int, heldout_fraction: float) -> Corpus:
    documents, num_files = [], 0
    for name, files in _packages():
        parts: list[bytes] = []
        size = 0
        for file in files:
            if size >= max_document_bytes:
                break
            parts.append(file.read_bytes())
            size += len(parts[-1])
        num_files += len(parts)
        tokens = np.frombuffer(b"".join(parts), np.uint8)[:max_document_bytes]
        documents.append(Document(name, _split(name, heldout_fraction), tokens))
    origin = {
        "corpus": "Python source of the running interpreter, bytes",
        "files": num_files,
        "bytes": sum(document.tokens.size for document in documents),
        "packages": len(documents),
    }
    return Corpus(documents, origin)


def _packages() -> Iterator[tuple[str, list[Path]]]:
    """Name and ``.py`` files, in path order, of every top-level package and module."""
    paths = sysconfig.get_paths()
    for prefix, root in (("stdlib", Path(paths["stdlib"])), ("site-packages", Path(paths["purelib"]))):
        for entry in sorted(root.iterdir()):
            if entry.suffix == ".py":
                yield f"{prefix}/{entry.stem}", [entry]
            elif entry.is_dir() and entry.name != "site-packages":
                files = sorted(path for path in entry.rglob("*.py") if path.is_file())
                if files:
                    yield f"{prefix}/{entry.name}", files


def _split(name: str, heldout_fraction: float) -> Split:
    draw = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    return "heldout" if draw < heldout_fraction else "train"
