"""Byte-level BPE: exact round trips, the same tokens however a text is cut, and GPT-2's from local files."""

import json
from pathlib import Path

import numpy as np
import pytest

from icl_eval.tasks import Files
from icl_eval.tasks.text import tokenizers
from icl_eval.tasks.text.corpus import training_texts
from icl_eval.tasks.text.tokenizers import ByteLevelBPE, from_json, pieces

WORDS = ["the", "state", "of", "a", "sequence", "model", "remembers", "", "told\n\n\tnaïve", "文字列", "don't", "1234"]


def text(seed: int, words: int) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


@pytest.fixture(scope="module")
def bpe() -> ByteLevelBPE:
    return ByteLevelBPE.train([text(0, 3000)], 300)


def test_tokens_decode_to_the_text_and_count_its_bytes(bpe: ByteLevelBPE) -> None:
    content = text(1, 500) + "  \n unseen: Ωmega 🙂\r\n"
    (tokens,) = bpe.encode([content.encode()])
    assert bpe.decode(tokens) == content
    assert bpe.token_bytes[tokens].sum() == len(content.encode())
    assert len(tokens) < len(content.encode()) / 2
    assert tokens.max() < bpe.num_tokens == 300


@pytest.mark.parametrize("seed", range(3))
def test_cutting_a_text_changes_no_token(seed: int, bpe: ByteLevelBPE, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (text(seed, 400) + " " * 50 + "\u00a0 \u2003 x\u00a0 y\n" * 20 + "文字列" * 100).encode()
    (whole,) = bpe.encode([content])
    monkeypatch.setattr(tokenizers, "_PIECE_CHARACTERS", 37)
    monkeypatch.setattr(tokenizers, "_PIECES_AT_A_TIME", 5)
    parts = list(pieces(content))
    assert len(parts) > 50
    assert "".join(parts).encode() == content
    cut = bpe.encode([content, content[:99], content])
    np.testing.assert_array_equal(cut[0], whole)
    np.testing.assert_array_equal(cut[2], whole)


def test_training_twice_gives_one_vocabulary_that_survives_json(bpe: ByteLevelBPE) -> None:
    again = ByteLevelBPE.train([text(0, 3000)], 300)
    assert again.sha256 == bpe.sha256
    assert again.to_json() == bpe.to_json()
    assert from_json(bpe.to_json()).sha256 == bpe.sha256
    assert ByteLevelBPE.train([text(0, 3000)], 299).sha256 != bpe.sha256


def test_more_merges_than_the_texts_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vocab_size = 5000: the training documents yield .* tokens only"):
        ByteLevelBPE.train(["a few words"], 5000)


def test_the_vocabulary_sees_training_documents_alone_and_a_share_of_each(tmp_path: Path) -> None:
    for split, words in (("train", ("abab", "cdcd")), ("heldout", ("xyxy",))):
        rows = (json.dumps({"text": f"{word} " * 200}) + "\n" for word in words)
        (tmp_path / f"{split}.jsonl").write_text("".join(rows))
    task = Files(path=str(tmp_path), tokenizer="bpe", vocab_size=260)
    learned = json.loads(task.corpus().tokenizer.to_json())["model"]["vocab"]
    assert {"ab", "cd"} < set(learned)
    assert "xy" not in learned
    assert [len(part) for part in training_texts(task.text(), limit=1000)] == [500, 500]


def gpt2_files(folder: Path, first_merges: tuple[str, ...], names: tuple[str, str]) -> str:
    """Files of GPT-2's size: its alphabet, some merges, and 50,000 in all."""
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in alphabet] + [chr(256 + n) for n in range(256 - len(alphabet))]
    merges = list(first_merges)
    merges += [f"{a} {b}" for a in letters for b in letters if f"{a} {b}" not in first_merges][: 50_000 - len(merges)]
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), "<|endoftext|>"]
    (folder / names[0]).write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / names[1]).write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return str(folder)


GPT2_MERGES = ("Ġ t", "Ġ a", "h e", "i n", "r e", "o n", "Ġt he")


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt")])
def test_gpt2_comes_from_local_files(names: tuple[str, str], tmp_path: Path) -> None:
    gpt2 = ByteLevelBPE.gpt2(gpt2_files(tmp_path, GPT2_MERGES, names))
    assert gpt2.num_tokens == 50_257
    assert gpt2.encode([b" the the"])[0].tolist() == [262, 262]
    assert gpt2.token_bytes[[262, 50_256, 0]].tolist() == [4, 0, 1]
    assert gpt2.encode([b"<|endoftext|>"])[0].max() < 50_256, "a text cannot forge the end of a document"


def test_other_vocabularies_are_not_taken_for_gpt2(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be a folder with GPT-2's encoder\.json and vocab\.bpe"):
        ByteLevelBPE.gpt2(str(tmp_path))
    gpt2_files(tmp_path, ("Ġ t", "h e"), ("encoder.json", "vocab.bpe"))
    with pytest.raises(ValueError, match="hold another vocabulary than GPT-2's"):
        ByteLevelBPE.gpt2(str(tmp_path))
    (tmp_path / "encoder.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer_path = "):
        ByteLevelBPE.gpt2(str(tmp_path))
