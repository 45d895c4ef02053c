"""Answers kept as they come, so that a killed evaluation goes on where it stopped."""

import hashlib
import json
from pathlib import Path
from typing import Any

from icl_eval.run_folder import RunFolderError, write_atomically


class RequestCache:
    """A file with a line an answer; the line that a crash tore is dropped.

    Args:
        file: where answers are kept; ``None`` keeps them in memory only.
        identity: what else decides about an answer: the model's hash, precision; part of every key.

    Raises:
        RunFolderError: the file cannot be read or written.
    """

    def __init__(self, file: Path | None, identity: str):
        self._file, self._identity = file, identity
        self._answers: dict[str, Any] = {}
        if file is not None:
            self._read(file)

    def _read(self, file: Path) -> None:
        try:
            content = file.read_bytes() if file.exists() else b""
        except OSError as error:
            raise RunFolderError(f"cannot read {file}: {error.strerror or error}") from error
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                key, answer = json.loads(line)
            except (ValueError, TypeError) as error:
                raise RunFolderError(f"{file}, line {number} is damaged: {error}") from error
            self._answers[key] = answer
        if whole != content or not file.exists():
            write_atomically(file, whole)

    def key(self, *request: Any) -> str:
        """The key of a request: its kind, arguments and number among equal ones."""
        return hashlib.sha256(json.dumps([self._identity, *request], sort_keys=True).encode()).hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Any:
        return self._answers[key]

    def add(self, key: str, answer: Any) -> None:
        """Keep an answer, JSON-ready."""
        self._answers[key] = answer
        if self._file is None:
            return
        try:
            with self._file.open("a") as file:
                file.write(json.dumps([key, answer]) + "\n")
        except OSError as error:
            raise RunFolderError(f"cannot write {self._file}: {error.strerror or error}") from error
