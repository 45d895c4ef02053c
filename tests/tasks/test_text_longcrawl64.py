"""LongCrawl64's arrays: slices, shifts and splits, and rows of zeros refused with a count."""

from pathlib import Path

import numpy as np
import pytest
import torch

from icl_eval.tasks import LongCrawl64, TextSource
from icl_eval.tasks.text import longcrawl64

zarr = pytest.importorskip("zarr")


def write(folder: Path, zarr_format: int = 3, train: int = 6, heldout: int = 3, length: int = 40) -> np.ndarray:
    """Arrays whose tokens tell their row (in the hundreds) and column; returns the held-out one."""
    for split, rows, first in (("train", train, 1), ("heldout", heldout, 101)):
        data = (100 * (np.arange(rows)[:, None] + first) + np.arange(length)).astype(np.uint16)
        array = zarr.create_array(
            folder / f"{split}.zarr", shape=data.shape, chunks=(1, 16), dtype="uint16", zarr_format=zarr_format
        )
        array[:] = data
    return data


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_sequences_are_slices_shifted_by_one(zarr_format: int, tmp_path: Path) -> None:
    heldout = write(tmp_path, zarr_format)
    source = LongCrawl64(path=str(tmp_path), seq_len=12).build(0)
    assert source.num_sequences("heldout") == 9
    batch = source.batch("heldout", 1, 4)
    assert batch.document.tolist() == [1, 2, 0, 1]
    for sequence, (row, part) in enumerate([(1, 1), (2, 1), (0, 2), (1, 2)]):
        expected = heldout[row, 12 * part : 12 * (part + 1)].tolist()
        assert batch.targets[sequence].tolist() == expected
        assert batch.tokens[sequence].tolist() == [50_256, *expected[:-1]]
    assert batch.scored.all()
    assert batch.position[0].tolist() == list(range(1, 13))
    with pytest.raises(ValueError, match="the held-out split has 9 sequences"):
        source.batch("heldout", 2, 4)


def test_training_sequences_cover_all_rows_and_slices_and_follow_the_seed(tmp_path: Path) -> None:
    write(tmp_path)
    task = LongCrawl64(path=str(tmp_path), seq_len=12)
    batch = task.build(0).batch("train", 0, 300)
    assert {(int(t) // 100, int(t) % 100) for t in batch.targets[:, 0]} == {
        (row, column) for row in range(1, 7) for column in (0, 12, 24)
    }
    assert torch.equal(batch.targets, task.build(0).batch("train", 0, 300).targets)
    assert not torch.equal(batch.targets, task.build(1).batch("train", 0, 300).targets)
    assert not torch.equal(batch.targets, task.build(0).batch("train", 1, 300).targets)


def test_the_hash_follows_the_rows_and_not_the_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, zarr_format=2 if name == "a" else 3)
    write(tmp_path / "c", length=39)
    hashes = [LongCrawl64(path=str(tmp_path / name), seq_len=8).build(0).manifest()["sha256"] for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_tokens_without_vocabulary_have_no_bytes(tmp_path: Path) -> None:
    write(tmp_path)
    source = LongCrawl64(path=str(tmp_path), seq_len=8).build(0)
    assert isinstance(source, TextSource)
    assert source.token_bytes() is None
    assert source.vocabulary() is None


def test_rows_of_zeros_are_refused_with_a_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    zarr.open_array(tmp_path / "train.zarr", mode="r+")[3:5] = 0
    task = LongCrawl64(path=str(tmp_path), seq_len=8)
    with pytest.raises(ValueError, match=r"2 of the 6 rows looked at \(of 6\) hold nothing but zeros, .*row 3"):
        task.build(0)
    monkeypatch.setattr(longcrawl64, "LOOKED_AT", 2)
    longcrawl64._hash_of_rows.cache_clear()
    source = task.build(0)
    with pytest.raises(ValueError, match=r"\d+ of 64 sequences hold nothing but zeros, .*in row [34]: this copy"):
        source.batch("train", 0, 64)


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda folder: (folder / "heldout.zarr").rename(folder / "other.zarr"), r"cannot open heldout\.zarr"),
        (lambda folder: zarr.open_array(folder / "train.zarr", mode="r+").set_basic_selection((0, 0), 50_257),
         "row 0 holds token 50257, and GPT-2 has 50,257"),
        (lambda folder: zarr.create_array(folder / "train.zarr", shape=(4, 8), dtype="int32", overwrite=True),
         "must be uint16, documents by tokens, not int32"),
    ],
    ids=["missing", "token", "type"],
)  # fmt: skip
def test_other_arrays_are_refused(break_it: object, message: str, tmp_path: Path) -> None:
    write(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ValueError, match=message):
        LongCrawl64(path=str(tmp_path), seq_len=8).build(0)


def test_a_context_longer_than_the_rows_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(ValueError, match=r"seq_len = 41: the rows of train\.zarr hold 40 tokens"):
        LongCrawl64(path=str(tmp_path), seq_len=41).build(0)
