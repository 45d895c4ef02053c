"""Where documents come from: files, a data set of the hub, and the Python source of the running interpreter."""

import codecs
import dataclasses
import functools
import glob
import hashlib
import json
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import fsspec
import pyarrow
from fsspec.compression import register_compression

from icl_eval.tasks.base import SPLITS, Split

COMPRESSIONS = {".gz": "gzip", ".xz": "xz", ".zst": "zstd"}
FORMATS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
TEXTS = (".txt", ".text", ".md", ".rst", ".tex")

# fsspec's own reader stops in silence at the end of the first frame, and where a file is cut short.
register_compression("zstd", lambda file, **_: pyarrow.CompressedInputStream(file, "zstd"), ("zst",), force=True)


class Document(NamedTuple):
    """One document: a name, the split it belongs to, a group it is reported in (or ``""``), and its text as UTF-8."""

    name: str
    split: Split
    group: str
    text: bytes


class Reader(Protocol):
    """Documents in a fixed order, none of them empty.

    Attributes:
        total_bytes: of all texts, where it is known beforehand.
    """

    @property
    def total_bytes(self) -> int | None: ...

    def key(self) -> str:
        """A hash of all that determines the documents."""

    def documents(self) -> Iterator[Document]:
        """The documents; the same at every call."""

    def about(self) -> dict[str, Any]:
        """What they are, JSON-ready; nothing that differs between machines."""


def split_by_hash(content: bytes, heldout_fraction: float) -> Split:
    """A split that depends on the content alone, not on what else there is."""
    draw = int.from_bytes(hashlib.sha256(content).digest()[:8]) / 2**64
    return "heldout" if draw < heldout_fraction else "train"


class _File(NamedTuple):
    path: Path
    name: str
    split: Split | None


@dataclass(frozen=True)
class FileReader:
    """Text, JSON lines and Parquet files, compressed or not; a text file is a document, elsewhere a row is.

    Attributes:
        path, heldout_path: files or folders. Without the second, what is called ``train…`` and ``heldout…`` in the
            folder ``path`` are the splits, if there are both, and else documents are split by a hash of their text.
        heldout_fraction: share of the documents that the hash puts in the held-out split.
        text_field, group_field: of a row; the second may be missing.
    """

    path: Path
    heldout_path: Path | None
    heldout_fraction: float
    text_field: str
    group_field: str
    total_bytes: None = None

    @functools.cached_property
    def files(self) -> list[_File]:
        """The files with their splits, training first, each in the order of their names.

        Raises:
            ValueError: there is no such file or folder, or nothing in it that can be read.
        """
        if self.heldout_path is not None:
            splits = dict(zip(SPLITS, ([self.path], [self.heldout_path]), strict=True))
        else:
            entries = sorted(self.path.iterdir()) if self.path.is_dir() else []
            splits = {split: [entry for entry in entries if entry.name.startswith(split)] for split in SPLITS}
        if not all(splits.values()):
            return _readable(self.path, None)
        return [file for split, paths in splits.items() for path in paths for file in _readable(path, split)]

    def key(self) -> str:
        options = [self.heldout_fraction, self.text_field, self.group_field]
        files = [(file.name, file.split, _hash_of_file(file.path, _stamp(file.path))) for file in self.files]
        return hashlib.sha256(json.dumps([options, files]).encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        for file in self.files:
            suffix, compression = _suffixes(file.path)
            texts: Iterable[tuple[str, str, bytes]]
            if suffix in FORMATS:
                rows = enumerate(_stream(file.path, FORMATS[suffix]))
                texts = (_document(row, file.name, number, self.text_field, self.group_field) for number, row in rows)
            else:
                texts = [(file.name, "", _read_text(file.path, compression))]
            for name, group, text in texts:
                if text:
                    yield Document(name, file.split or split_by_hash(text, self.heldout_fraction), group, text)

    def about(self) -> dict[str, Any]:
        return {"corpus": "files", "files": len(self.files)}


def _readable(path: Path, split: Split | None) -> list[_File]:
    """The file, or the files of the folder that can be read, in the order of their names; hidden ones are passed over.

    Raises:
        ValueError: there are none.
    """
    if path.is_file():
        return [_File(path, path.name, split)]
    if not path.is_dir():
        raise ValueError(f"path = {str(path)!r}: there is no such file or folder")
    inside = {file.relative_to(path): file for file in path.rglob("*") if file.is_file()}
    files = [
        _File(file, name.as_posix(), split)
        for name, file in sorted(inside.items())
        if _suffixes(file)[0] in (*FORMATS, *TEXTS) and not any(part.startswith(".") for part in name.parts)
    ]
    if not files:
        kinds = ", ".join((*TEXTS, *FORMATS))
        raise ValueError(
            f"path = {str(path)!r}: holds no file ending in {kinds} (or these and {', '.join(COMPRESSIONS)})"
        )
    return files


def _document(
    row: dict[str, Any], where: str, number: int, text_field: str, group_field: str
) -> tuple[str, str, bytes]:
    """Name, group and text of a row.

    Raises:
        ValueError: it holds no text.
    """
    if not isinstance(row.get(text_field), str):
        raise ValueError(
            f"{where}, row {number}: its field {text_field!r} holds no text (text_field names the field; the row has "
            f"{', '.join(row)})"
        )
    group = row.get(group_field)
    return f"{where}:{number}", "" if group is None else str(group), row[text_field].encode()


def _suffixes(file: Path) -> tuple[str, str | None]:
    """What a file's name says of its format and of its compression."""
    compression = COMPRESSIONS.get(file.suffix.lower())
    return (Path(file.stem) if compression else file).suffix.lower(), compression


def _stamp(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=4096)
def _hash_of_file(file: Path, _: tuple[int, int]) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _read_text(file: Path, compression: str | None) -> bytes:
    """The contents of a text file.

    Raises:
        ValueError: it is damaged, or not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with fsspec.open(file.resolve().as_uri(), "rb", compression=compression) as content:
            text = content.read()
        for begin in range(0, len(text), 2**24):
            decoder.decode(text[begin : begin + 2**24])
        decoder.decode(b"", final=True)
    except Exception as error:  # what the readers raise has no common base
        raise ValueError(f"cannot read {file}: {error}") from error
    return text


def _stream(file: Path, file_format: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON lines or Parquet file, without holding them all.

    Raises:
        ValueError: it is damaged.
    """
    import datasets  # takes a second

    datasets.logging.get_logger("datasets").setLevel("CRITICAL")
    try:
        yield from datasets.load_dataset(
            file_format, data_files=[glob.escape(str(file.absolute()))], split="train", streaming=True
        )
    except Exception as error:  # nor here
        raise ValueError(f"cannot read {file}: {' '.join(str(error).split()) or 'it is empty'}") from error


@dataclass(frozen=True)
class HubReader:
    """A data set of the hub, streamed: a row is a document.

    Attributes:
        dataset, config, revision: as ``datasets.load_dataset`` takes them.
        splits: the data set's split to train on, and that to hold out; without the second, a hash of the text splits.
        heldout_fraction, text_field, group_field: as in :class:`FileReader`.
        max_bytes: where to stop reading each split.
    """

    dataset: str
    config: str | None
    revision: str | None
    splits: tuple[str, str | None]
    heldout_fraction: float
    text_field: str
    group_field: str
    max_bytes: int | None
    total_bytes: None = None

    def key(self) -> str:
        return hashlib.sha256(json.dumps(dataclasses.astuple(self)).encode()).hexdigest()

    def documents(self) -> Iterator[Document]:
        for name, split in zip(self.splits, SPLITS, strict=True):
            size = 0
            for number, row in enumerate(self._rows(name) if name else ()):
                _, group, text = _document(row, f"{self.dataset}:{name}", number, self.text_field, self.group_field)
                size += len(text)
                if self.max_bytes is not None and size > self.max_bytes:
                    break
                if text:
                    given = split if self.splits[1] else split_by_hash(text, self.heldout_fraction)
                    yield Document(f"{name}:{number}", given, group, text)

    def _rows(self, split: str) -> Iterator[dict[str, Any]]:
        import datasets  # takes a second

        try:
            yield from datasets.load_dataset(
                self.dataset, self.config, split=split, revision=self.revision, streaming=True
            )
        except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
            raise ValueError(
                f"cannot read split {split!r} of the data set {self.dataset!r}, which needs a network, and the name "
                f"and split to be right: {' '.join(str(error).split())}"
            ) from error

    def about(self) -> dict[str, Any]:
        return {"corpus": f"{self.dataset} of the hub", "config": self.config, "revision": self.revision}


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


def _packages() -> Iterator[tuple[str, Sequence[Path]]]:
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
