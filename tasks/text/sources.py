"""Where documents come from: files, and a data set of the hub."""

import codecs
import dataclasses
import functools
import glob
import hashlib
import json
from collections.abc import Iterable, Iterator
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
