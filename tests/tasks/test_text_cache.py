"""Prepared corpora: written once, resumed, shared, and never read half-written."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from icl_eval.tasks import Files
from icl_eval.tasks.text import cache, corpus
from icl_eval.tasks.text.sources import Document, FileReader


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with shards of a few documents."""
    monkeypatch.setenv("ICL_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "SHARD_BYTES", 5000)
    return tmp_path / "cache"


@pytest.fixture
def task(tmp_path: Path) -> Files:
    texts = (f"{i} green bottles, " * (20 + 7 * i % 50) for i in range(60))
    (tmp_path / "all.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return Files(path=str(tmp_path / "all.jsonl"), seq_len=8)


class Counting:
    """Counts the documents read, and may stop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None):
        self.count = 0
        original = FileReader.documents

        def documents(reader: FileReader) -> Iterator[Document]:
            for document in original(reader):
                if self.count == stop_after:
                    raise KeyboardInterrupt
                self.count += 1
                yield document

        monkeypatch.setattr(FileReader, "documents", documents)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_corpus_is_read_once(task: Files, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    first = task.corpus()
    second = task.corpus()
    assert counting.count == 60
    np.testing.assert_array_equal(first.tokens, second.tokens)
    assert isinstance(second.tokens, np.memmap)
    assert len(json.loads(next(folder.glob("*/meta.json")).read_text())["shards"]) > 5


def test_a_preparation_cut_short_resumes_to_the_same_files(
    task: Files, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task.corpus()
    whole = contents(folder)
    monkeypatch.setenv("ICL_EVAL_CACHE", str(tmp_path / "another"))
    with monkeypatch.context() as patch:
        Counting(patch, stop_after=31)
        with pytest.raises(KeyboardInterrupt):
            task.corpus()
    (partial,) = (tmp_path / "another").glob("*.partial")
    with (partial / "tokens.bin").open("ab") as file:
        file.write(b"torn")
    with (partial / "journal.jsonl").open("a") as file:
        file.write('{"documents": [["')
    kept = []
    resumable = cache._resumable
    monkeypatch.setattr(cache, "_resumable", lambda *at: kept.append(resumable(*at)) or list(kept[0]))
    task.corpus()
    assert contents(tmp_path / "another") == whole
    assert 20 < sum(len(shard["documents"]) for shard in kept[0]) <= 31


def test_tokenising_resumes_to_the_same_files(
    task: Files, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = {"path": task.path, "seq_len": 8, "tokenizer": "bpe", "vocab_size": 280}
    Files(**fields).corpus()
    whole = contents(folder)
    monkeypatch.setenv("ICL_EVAL_CACHE", str(tmp_path / "another"))
    calls = []
    encode = corpus.ByteLevelBPE.encode

    def failing(self: corpus.ByteLevelBPE, texts: list[bytes]) -> list[np.ndarray]:
        calls.append(len(texts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, texts)

    monkeypatch.setattr(corpus.ByteLevelBPE, "encode", failing)
    with pytest.raises(KeyboardInterrupt):
        Files(**fields).corpus()
    Files(**fields).corpus()
    assert contents(tmp_path / "another") == whole
    assert sum(calls) - calls[3] == 60, "no document is tokenised twice"


@pytest.mark.parametrize("damage", ["truncated", "altered", "documents", "meta", "missing"])
def test_damaged_corpora_are_prepared_again(damage: str, task: Files, folder: Path) -> None:
    before = np.array(task.corpus().tokens)
    (tokens,) = folder.glob("*/tokens.bin")
    if damage == "truncated":
        os.truncate(tokens, tokens.stat().st_size - 1)
    elif damage == "altered":
        tokens.write_bytes(b"?" + tokens.read_bytes()[1:])
    elif damage == "missing":
        tokens.unlink()
    else:
        file = tokens.with_name("documents.parquet" if damage == "documents" else "meta.json")
        file.write_bytes(file.read_bytes()[:-20])
    with pytest.warns(UserWarning, match="is damaged and is prepared again"):
        np.testing.assert_array_equal(task.corpus().tokens, before)


PREPARE = """
import sys
from icl_eval.tasks import Files
corpus = Files(path=sys.argv[1], seq_len=8, tokenizer="bpe", vocab_size=280).corpus()
print(corpus.about["sha256"], int(corpus.tokens.sum()))
"""


def test_processes_at_once_and_one_killed_give_one_corpus(task: Files, folder: Path) -> None:
    command = [sys.executable, "-c", PREPARE, task.path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) for _ in range(3)]
    deadline = time.monotonic() + 60
    while not list(folder.glob("*.partial")) and not list(folder.glob("*/meta.json")) and time.monotonic() < deadline:
        time.sleep(0.002)
    processes[0].send_signal(signal.SIGKILL)
    results = {process.communicate()[0] for process in processes[1:]}
    assert [process.returncode for process in processes[1:]] == [0, 0]
    made = Files(path=task.path, seq_len=8, tokenizer="bpe", vocab_size=280).corpus()
    assert results == {f"{made.about['sha256']} {int(made.tokens.sum())}\n"}
    assert not list(folder.glob("*.partial"))


def test_a_cache_that_cannot_be_written_is_named(task: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ICL_EVAL_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot write the corpus cache .*file .*ICL_EVAL_CACHE names it"):
        task.corpus()


def test_the_cache_lies_where_the_user_or_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ICL_EVAL_CACHE", "~/corpora")
    assert cache.cache_folder() == Path.home() / "corpora"
    monkeypatch.delenv("ICL_EVAL_CACHE")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache.cache_folder() == Path("/caches/icl-eval")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache.cache_folder() == Path.home() / "Library" / "Caches" / "icl-eval"
