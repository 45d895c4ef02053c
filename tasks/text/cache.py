"""Prepared corpora on disk: arrays of tokens to be memory-mapped, written once, resumed when cut short.

A corpus is a folder of the cache: ``tokens.bin``, ``documents.parquet`` (a row a document, in order) and ``meta.json``.
While it is written it is called ``KEY.partial`` and a journal stands in it; renaming it is the last step. Whoever needs
a corpus that another process is writing waits for it.
"""

import json
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

SHARD_BYTES = 8 * 2**20
"""Text between two lines of the journal, and tokenised at a time; whole documents, so the last may make it more."""
CHECKED_SHARDS = 8
"""Shards of tokens whose checksums are compared whenever a corpus is opened."""


class Shard(NamedTuple):
    """Consecutive documents and their tokens, end to end.

    Attributes:
        documents: rows of :data:`COLUMNS`.
        tokens: one-dimensional, unsigned.
    """

    documents: list[tuple]
    tokens: np.ndarray


COLUMNS = ("name", "split", "group", "bytes", "tokens", "sha256")
"""Of a document: name, split, the group it is reported in, bytes of UTF-8, tokens, hash of its text."""


class Prepared(NamedTuple):
    """A corpus of the cache, opened.

    Attributes:
        tokens: memory-mapped, read-only.
        documents: a row a document, columns :data:`COLUMNS`.
        about: what was recorded with it, JSON-ready.
    """

    tokens: np.ndarray
    documents: pd.DataFrame
    about: dict[str, Any]


def cache_folder() -> Path:
    """Where corpora are kept: the environment's ``ICL_EVAL_CACHE``, or ``icl-eval`` in the user's cache folder."""
    if folder := os.environ.get("ICL_EVAL_CACHE"):
        return Path(folder).expanduser()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "icl-eval"


def prepare(
    key: str,
    shards: Callable[[int], Iterator[Shard]],
    dtype: np.dtype,
    about: Callable[[pd.DataFrame], dict[str, Any]],
    *,
    what: str,
    total_bytes: int | None,
) -> Prepared:
    """The corpus of this key, written first if the cache lacks it or holds a damaged one.

    Args:
        key: a hash of all that determines the corpus.
        shards: gives the shards from document n on; the same ones at every call.
        dtype: of the tokens.
        about: what is to be recorded with the finished table of documents.
        what: what is being done, for the progress bar.
        total_bytes: of text, where it is known.

    Raises:
        ValueError: the cache cannot be written.
    """
    folder = cache_folder() / key
    opened = _open(folder)
    if opened is not None:
        return opened
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            opened = _open(folder)
            if opened is None:
                if folder.exists():
                    warnings.warn(f"the cached corpus {folder} is damaged and is prepared again", stacklevel=2)
                    shutil.rmtree(folder)
                _write(folder, shards, dtype, about, what, total_bytes)
                opened = _open(folder)
    except OSError as error:
        message = f"cannot write the corpus cache {folder.parent} ({error.strerror or error}); ICL_EVAL_CACHE names it"
        raise ValueError(message) from error
    if opened is None:
        raise ValueError(f"the corpus just written to {folder} does not read back: the disk is not to be trusted")
    return opened


def _write(
    folder: Path,
    shards: Callable[[int], Iterator[Shard]],
    dtype: np.dtype,
    about: Callable[[pd.DataFrame], dict[str, Any]],
    what: str,
    total_bytes: int | None,
) -> None:
    partial = folder.with_name(f"{folder.name}.partial")
    partial.mkdir(exist_ok=True)
    journal = _resumable(partial, dtype)
    done = [row for shard in journal for row in shard["documents"]]
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with (
        (partial / "tokens.bin").open("ab") as tokens_file,
        (partial / "journal.jsonl").open("a") as journal_file,
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
    ):
        bar = progress.add_task(what, total=total_bytes, completed=sum(row[3] for row in done))
        for shard in shards(len(done)):
            tokens = shard.tokens.astype(dtype, copy=False)
            tokens_file.write(tokens.data)
            _flush(tokens_file)
            entry = {"documents": shard.documents, "tokens": tokens.size, "crc32": zlib.crc32(tokens.data)}
            journal_file.write(json.dumps(entry) + "\n")
            _flush(journal_file)
            journal.append(entry)
            progress.advance(bar, sum(row[3] for row in shard.documents))
    rows = [row for shard in journal for row in shard["documents"]]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype({"bytes": np.int64, "tokens": np.int64})
    table.to_parquet(partial / "documents.parquet")
    meta = {
        "dtype": np.dtype(dtype).name,
        "shards": [(shard["tokens"], shard["crc32"]) for shard in journal],
        "documents_crc32": zlib.crc32((partial / "documents.parquet").read_bytes()),
        "about": about(table),
    }
    with (partial / "meta.json").open("w") as meta_file:
        json.dump(meta, meta_file)
        _flush(meta_file)
    (partial / "journal.jsonl").unlink()
    partial.rename(folder)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _resumable(partial: Path, dtype: np.dtype) -> list[dict[str, Any]]:
    """The journal's lines whose tokens are on the disk as they were written; all that follows them is cut off."""
    tokens_path, journal_path = partial / "tokens.bin", partial / "journal.jsonl"
    tokens_path.touch()
    kept: list[dict[str, Any]] = []
    lines = journal_path.read_text().splitlines() if journal_path.exists() else []
    with tokens_path.open("rb") as file:
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if zlib.crc32(file.read(entry["tokens"] * np.dtype(dtype).itemsize)) != entry["crc32"]:
                break
            kept.append(entry)
    journal_path.write_text("".join(line + "\n" for line in lines[: len(kept)]))
    os.truncate(tokens_path, sum(entry["tokens"] for entry in kept) * np.dtype(dtype).itemsize)
    return kept


def _open(folder: Path) -> Prepared | None:
    """The corpus of a folder; ``None`` where there is none, or one that is not what was written."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        table_bytes = (folder / "documents.parquet").read_bytes()
        sizes = np.array([size for size, _ in meta["shards"]], np.int64)
        dtype = np.dtype(meta["dtype"])
        whole = (folder / "tokens.bin").stat().st_size == sizes.sum() * dtype.itemsize
        if not whole or zlib.crc32(table_bytes) != meta["documents_crc32"]:
            return None
        tokens = np.memmap(folder / "tokens.bin", dtype, "r") if sizes.sum() else np.zeros(0, dtype)
        ends = sizes.cumsum()
        for shard in np.unique(np.linspace(0, len(sizes) - 1, CHECKED_SHARDS).astype(int)) if len(sizes) else ():
            if zlib.crc32(tokens[ends[shard] - sizes[shard] : ends[shard]].data) != meta["shards"][shard][1]:
                return None
        return Prepared(tokens, pd.read_parquet(folder / "documents.parquet"), meta["about"])
    except (OSError, ValueError, KeyError):
        return None
