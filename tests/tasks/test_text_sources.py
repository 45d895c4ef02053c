"""Documents from files of every kind: the same text whatever holds it, split and identified by what it says."""

import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow
import pytest

from icl_eval.tasks import Files, Hub
from icl_eval.tasks.text.corpus import Corpus

TEXTS = [f"Document {i}: " + "naïve café — 文字 " * (i + 3) for i in range(12)]


def zstd(content: bytes) -> bytes:
    """In two frames, as parallel compressors write them."""
    halves = content[: len(content) // 2], content[len(content) // 2 :]
    return b"".join(pyarrow.Codec("zstd").compress(half, asbytes=True) for half in halves)


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstd,
}  # fmt: skip


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"source": f"s{i % 2}", "text": text}) + "\n" for i, text in enumerate(texts)).encode()


def texts(corpus: Corpus, split: str) -> list[str]:
    return [corpus.document(i).tobytes().decode() for i in corpus.members(split)]


def files(path: Path, **fields: object) -> Files:
    return Files(path=str(path), seq_len=16, **fields)


@pytest.mark.parametrize(
    ("kind", "compression"), [("parquet", ""), *((kind, name) for kind in ("jsonl", "txt") for name in COMPRESS)]
)
def test_every_format_and_compression_gives_the_same_documents(kind: str, compression: str, tmp_path: Path) -> None:
    for split, part in (("train", TEXTS[:8]), ("heldout", TEXTS[8:])):
        if kind == "txt":
            (tmp_path / split).mkdir()
            for i, text in enumerate(part):
                (tmp_path / split / f"{i:02}.txt{compression}").write_bytes(COMPRESS[compression](text.encode()))
        elif kind == "parquet":
            pd.DataFrame({"text": part}).to_parquet(tmp_path / f"{split}.parquet")
        else:
            (tmp_path / f"{split}.jsonl{compression}").write_bytes(COMPRESS[compression](json_lines(part)))
    (tmp_path / "README.md").write_text("About the documents.")
    corpus = files(tmp_path).corpus()
    assert texts(corpus, "train") == TEXTS[:8]
    assert texts(corpus, "heldout") == TEXTS[8:]
    digest = hashlib.sha256()
    for i, text in enumerate(TEXTS):
        group = f"s{i % 2}" if kind == "jsonl" else ""
        split = "train" if i < 8 else "heldout"
        digest.update(f"{split}\0{group}\0{hashlib.sha256(text.encode()).hexdigest()}\n".encode())
    assert corpus.about["sha256"] == digest.hexdigest()


def test_rows_keep_their_group(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(json_lines(TEXTS))
    (tmp_path / "heldout.jsonl").write_bytes(json_lines(TEXTS[::-1]))
    assert files(tmp_path).build(0).manifest()["heldout_groups"] == {
        "s0": list(range(12, 24, 2)), "s1": list(range(13, 24, 2)),
    }  # fmt: skip


def test_the_hash_follows_texts_splits_and_groups_and_not_places(tmp_path: Path) -> None:
    def sha(name: str, train: bytes, heldout: bytes, **fields: object) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.jsonl").write_bytes(train)
        (tmp_path / name / "heldout.jsonl").write_bytes(heldout)
        return files(tmp_path / name, **fields).build(0).manifest()["sha256"]

    first, second = json_lines(TEXTS[:8]), json_lines(TEXTS[8:])
    same = sha("a", first, second)
    assert sha("elsewhere", first, second) == same
    others = [
        sha("splits", second, first),
        sha("text", first.replace(b"Document 3", b"document 3"), second),
        sha("order", json_lines(TEXTS[7::-1]), second),
        sha("groups", first, second, group_field="none"),
    ]
    assert len({same, *others}) == 5


def test_without_named_splits_a_hash_of_the_text_splits(tmp_path: Path) -> None:
    many = [f"{i} " * 20 for i in range(400)]
    (tmp_path / "all.jsonl").write_bytes(json_lines(many))
    whole = files(tmp_path / "all.jsonl", heldout_fraction=0.2).corpus()
    assert 0.13 < len(whole.members("heldout")) / 400 < 0.27
    (tmp_path / "half.jsonl").write_bytes(json_lines(many[::2]))
    half = files(tmp_path / "half.jsonl", heldout_fraction=0.2).corpus()
    assert set(texts(half, "heldout")) < set(texts(whole, "heldout"))


def test_heldout_documents_may_lie_apart(tmp_path: Path) -> None:
    for name, part in (("ours", TEXTS[:6]), ("theirs", TEXTS[6:])):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(part))
    corpus = files(tmp_path / "ours.jsonl", heldout_path=str(tmp_path / "theirs.jsonl")).corpus()
    assert texts(corpus, "train") == TEXTS[:6]
    assert texts(corpus, "heldout") == TEXTS[6:]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', r"a.jsonl, row 0: its field 'text' holds no text .*the row has body"),
        ("a.jsonl", b'{"text": 3}\n', "row 0: its field 'text' holds no text"),
        ("a.jsonl", b'{"text": "x"}\n{"text":', "cannot read .*a.jsonl: JSON parse error"),
        ("a.jsonl", b"", "cannot read .*a.jsonl|no train document"),
        ("a.parquet", b"nothing", "cannot read .*a.parquet"),
        ("a.txt", b"caf\xe9 au lait", "cannot read .*a.txt: 'utf-8' codec"),
        ("a.txt", b"caf\xc3", "cannot read .*a.txt: 'utf-8' codec"),
        ("a.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "cannot read .*a.txt.gz"),
        ("a.txt.xz", b"nothing", "cannot read .*a.txt.xz"),
        ("a.txt.zst", b"nothing", "cannot read .*a.txt.zst"),
        ("a.txt.zst", zstd(b"x" * 999)[:-3], "cannot read .*a.txt.zst: Truncated"),
        ("a.jsonl.zst", zstd(json_lines(TEXTS))[:-3], "cannot read .*a.jsonl.zst: Truncated"),
        ("a.csv", b"x", "holds no file ending in .txt, .*.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        files(tmp_path).build(0)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere': there is no such file or folder"):
        files(tmp_path / "nowhere").build(0)


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "all.jsonl"
    path.write_bytes(json_lines([text * 3 for text in TEXTS]))
    before = files(path).corpus().about["sha256"]
    path.write_bytes(json_lines([text * 4 for text in TEXTS]))
    assert files(path).corpus().about["sha256"] != before
    shutil.copy(path, tmp_path / "again.jsonl")
    assert files(tmp_path / "again.jsonl").corpus().about["sha256"] == files(path).corpus().about["sha256"]


def test_a_data_set_of_the_hub_is_streamed_by_name(tmp_path: Path) -> None:
    """A local data set goes the way of a remote one."""
    (tmp_path / "train.jsonl").write_bytes(json_lines(TEXTS[:8]).replace(b'"text"', b'"body"'))
    (tmp_path / "test.jsonl").write_bytes(json_lines(TEXTS[8:]).replace(b'"text"', b'"body"'))
    corpus = Hub(dataset=str(tmp_path), heldout_split="test", text_field="body", seq_len=16).corpus()
    assert texts(corpus, "train") == TEXTS[:8]
    assert texts(corpus, "heldout") == TEXTS[8:]
    limit = sum(len(text.encode()) for text in TEXTS[:3])
    part = Hub(dataset=str(tmp_path), heldout_split="test", text_field="body", seq_len=16, max_bytes=limit).corpus()
    assert texts(part, "train") == TEXTS[:3]
    with pytest.raises(ValueError, match="row 0: its field 'text' holds no text"):
        Hub(dataset=str(tmp_path), seq_len=16).corpus()


def test_a_hub_out_of_reach_is_said_in_a_sentence() -> None:
    code = """
from icl_eval.tasks import Hub
try:
    Hub(dataset="nobody/nothing", seq_len=16).build(0)
except ValueError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "the data set 'nobody/nothing', which needs a network" in done.stdout
    assert len(done.stdout.splitlines()) == 1
