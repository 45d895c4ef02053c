"""Python source as documents: that of the running interpreter, or of wheels."""

import functools
import hashlib
import os
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icl_eval.tasks.base import SPLITS
from icl_eval.tasks.text.sources import Document, split_by_hash


@dataclass(frozen=True)
class SourceCodeReader:
    """Python source, one document a package, its files in path order: of the running interpreter, or of wheels.

    Training packages come first. A file of a held-out package that stands byte for byte in a training document, such
    as a vendored copy, is left out there, and so is a file that is not UTF-8 everywhere.

    Raises:
        ValueError: there are no wheels in ``wheels``, or a damaged one.
    """

    max_document_bytes: int
    heldout_fraction: float
    wheels: Path | None = None
    total_bytes: None = None

    def key(self) -> str:
        digest = hashlib.sha256(b"source code")
        for name, split, _, text in self._corpus[0]:
            digest.update(f"{name}\0{split}\0{len(text)}\0".encode() + text)
        return digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        return iter(self._corpus[0])

    def about(self) -> dict[str, Any]:
        origin = "the running interpreter" if self.wheels is None else "wheels"
        return {"corpus": f"Python source of {origin}", **self._corpus[1]}

    @functools.cached_property
    def _corpus(self) -> tuple[list[Document], dict[str, int]]:
        """The documents, and how many files were read, found to be copies, and found not to be UTF-8."""
        documents, seen = [], set[bytes]()
        counts = {"files": 0, "copies_left_out": 0, "not_utf8_left_out": 0}
        found = _packages() if self.wheels is None else _wheels(self.wheels)
        packages = [(split_by_hash(name.encode(), self.heldout_fraction), name, files) for name, files in found]
        for split, name, files in sorted(packages, key=lambda package: SPLITS.index(package[0])):
            parts: list[bytes] = []
            size = 0
            for file in files:
                if size >= self.max_document_bytes:
                    break
                text = file.read_bytes()
                digest = hashlib.sha256(text).digest()
                if split == "heldout" and digest in seen:
                    counts["copies_left_out"] += 1
                elif not _is_utf8(text):
                    counts["not_utf8_left_out"] += 1
                else:
                    counts["files"] += 1
                    parts.append(text)
                    size += len(text)
                    if split == "train":
                        seen.add(digest)
            text = b"".join(parts)[: self.max_document_bytes].decode(errors="ignore").encode()
            if text:
                documents.append(Document(name, split, "", text))
        return documents, counts


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _packages() -> Iterator[tuple[str, Iterable[Path]]]:
    """Name and ``.py`` files, in path order, of every top-level package and module."""
    paths = sysconfig.get_paths()
    for prefix, root in (("stdlib", Path(paths["stdlib"])), ("site-packages", Path(paths["purelib"]))):
        for entry in sorted(root.iterdir()):
            if entry.suffix == ".py":
                yield f"{prefix}/{entry.stem}", [entry]
            elif entry.is_dir() and entry.name != "site-packages":
                yield f"{prefix}/{entry.name}", _python_files(entry)


def _python_files(folder: Path) -> Iterator[Path]:
    """In path order, each looked for when it is asked for: large packages are seldom read to their end."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_dir(follow_symlinks=False):
            yield from _python_files(Path(entry))
        elif entry.name.endswith(".py") and entry.is_file():
            yield Path(entry)


def _wheels(folder: Path) -> Iterator[tuple[str, Sequence[zipfile.Path]]]:
    """Distribution and ``.py`` files, in path order, of every wheel in a folder."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise ValueError(f"wheels = {str(folder)!r}: there is no .whl file in it; fill it with pip download --no-deps")
    for wheel in wheels:
        try:
            archive = zipfile.ZipFile(wheel)
        except zipfile.BadZipFile as error:
            raise ValueError(f"{wheel} is damaged: {error}") from error
        names = sorted(name for name in archive.namelist() if name.endswith(".py"))
        if names:
            yield f"wheels/{wheel.name.split('-')[0].lower()}", [zipfile.Path(archive, name) for name in names]
