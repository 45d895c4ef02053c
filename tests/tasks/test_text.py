"""Windows over documents, and the embedded corpus."""

from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch

from icl_eval.tasks import SourceCode
from icl_eval.tasks.text.corpus import Corpus, WindowSource


def corpus() -> Corpus:
    """Documents whose tokens tell their number (in the hundreds) and place."""
    sizes = {"train": [40, 9, 25], "heldout": [35, 20, 10]}
    rows = [(f"{split}{i}", split, split[0], n, n) for split, members in sizes.items() for i, n in enumerate(members)]
    documents = pd.DataFrame(rows, columns=["name", "split", "group", "bytes", "tokens"])
    tokens = np.concatenate([np.arange(n, dtype=np.uint16) + 100 * i for i, n in enumerate(documents["tokens"])])
    return Corpus(tokens, documents, {"sha256": "of the numbers"})


def test_training_windows_cover_every_start_and_cross_no_border() -> None:
    batch = WindowSource(corpus(), seq_len=10, seed=0).batch("train", 0, 2000)
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert (batch.targets == batch.tokens + 1).all()
    starts = set(batch.tokens[:, 0].tolist())
    assert starts == set(range(30)) | set(range(200, 215))
    assert torch.equal(batch.document, batch.tokens[:, 0] // 100)
    assert batch.position[0].tolist() == list(range(1, 11))


def test_heldout_windows_are_disjoint_and_come_in_rounds() -> None:
    source = WindowSource(corpus(), seq_len=10, seed=0)
    assert source.num_sequences("heldout") == 4
    batch = source.batch("heldout", 0, 4)
    assert batch.document.tolist() == [3, 4, 3, 3]
    seen = batch.targets.flatten().tolist()
    assert len(set(seen)) == len(seen)
    other = WindowSource(corpus(), seq_len=10, seed=5).batch("heldout", 0, 4)
    assert torch.equal(other.tokens, batch.tokens)
    with pytest.raises(ValueError, match="the held-out split has 4 sequences"):
        source.batch("heldout", 1, 4)


def test_rolled_windows_read_all_of_a_document_at_every_position() -> None:
    """One roll a token of the shorter document: each position reads each of its tokens once."""
    source = WindowSource(corpus(), seq_len=10, seed=0, rolled_windows=20)
    assert source.num_sequences("heldout") == 40
    batch = source.batch("heldout", 0, 40)
    assert batch.document.tolist() == [3, 4] * 20
    assert torch.equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    rolled = (batch.targets != batch.tokens + 1).nonzero()
    for row, column in rolled.tolist():
        first, size = {3: (300, 35), 4: (400, 20)}[batch.document[row].item()]
        assert (batch.tokens[row, column], batch.targets[row, column]) == (first + size - 1, first)
    short = batch.tokens[batch.document == 4]
    assert all(sorted(short[:, place].tolist()) == list(range(400, 420)) for place in range(10))
    long = batch.tokens[batch.document == 3].sort(dim=0).values
    assert set(long[:, 0].diff().tolist()) == {1, 2}
    again = WindowSource(corpus(), seq_len=10, seed=5, rolled_windows=20).batch("heldout", 0, 40)
    assert torch.equal(again.tokens, batch.tokens)


def test_manifest_counts_what_is_used_and_left_out() -> None:
    manifest = WindowSource(corpus(), seq_len=10, seed=0).manifest()
    splits = manifest["splits"]
    assert manifest["sha256"] == "of the numbers"
    assert manifest["heldout_groups"] == {"h": [3, 4]}
    assert splits["train"] == {"documents": 2, "tokens": 65, "documents_left_out": 1, "tokens_left_out": 9}
    assert splits["heldout"] == {"documents": 2, "tokens": 55, "documents_left_out": 1, "tokens_left_out": 10}


def test_a_context_longer_than_all_documents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"seq_len = 40: no train document is longer \(the longest has 40 tokens\)"):
        WindowSource(corpus(), seq_len=40, seed=0)


def test_source_code_is_python_and_splits_by_package() -> None:
    source = SourceCode(seq_len=256).build(0)
    corpus = source.corpus
    assert 0.02 < (corpus.documents["split"] == "heldout").mean() < 0.5
    text = bytes(source.batch("train", 0, 64).tokens.flatten().tolist()).decode("utf-8", errors="replace")
    assert "def " in text
    assert "import " in text
    manifest = source.manifest()
    assert manifest["files"] > 500
    assert manifest["bytes"] == corpus.sizes.sum()
    assert max(corpus.sizes) <= 524_288


def test_wheels_are_documents_in_path_order(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wheels = '.*': there is no .whl file in it"):
        SourceCode(wheels=str(tmp_path)).build(0)
    for name in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"):
        with ZipFile(tmp_path / f"{name.title()}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr("b/second.py", f"{name} = 2\n" * 50)
            wheel.writestr("a/first.py", f"{name} = 1\n" * 50)
            wheel.writestr("a/data.bin", b"\xff" * 50)
    corpus = SourceCode(seq_len=10, heldout_fraction=0.4, wheels=str(tmp_path)).corpus()
    assert set(corpus.documents["split"]) == {"train", "heldout"}
    assert sorted(corpus.documents["name"])[:2] == ["wheels/alpha", "wheels/beta"]
    index = corpus.documents["name"].tolist().index("wheels/alpha")
    assert corpus.document(index).tobytes() == b"alpha = 1\n" * 50 + b"alpha = 2\n" * 50
    assert corpus.about["files"] == 16
    (tmp_path / "broken-1.0-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"broken-1.0-py3-none-any.whl is damaged"):
        SourceCode(wheels=str(tmp_path), heldout_fraction=0.3).corpus()
