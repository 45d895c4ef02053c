"""Corpora looked at, frozen, and put under a preset's text tasks."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from icl_eval import Budget, load_runs
from icl_eval.cli import main
from icl_eval.experiment import Experiment
from icl_eval.presets import load_preset, on_text
from icl_eval.run import run_experiment
from icl_eval.tasks import Files, SourceCode
from icl_eval.tasks.text.tokenizers import from_json
from tests.icl_eval.test_cli import icl_eval

TINY = str(Path(__file__).parents[1] / "tiny.py")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight documents of about 4 kB to train on and four held out."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, numbers in (("train", range(8)), ("heldout", range(8, 12))):
        rows = ({"text": f"{n} bottles of beer on the wall, " * 130, "source": f"s{n % 2}"} for n in numbers)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["icl-eval", "data", "export", TINY, str(folder)])
        with pytest.raises(SystemExit) as stop:
            main()
    assert not stop.value.code
    return folder


def text_arm(path: Path, **fields: object) -> Experiment:
    """The text arm of the tiny experiment, on files."""
    tiny = on_text(load_preset(TINY), path)
    task = replace(tiny.arms[2].task, **fields)
    model = replace(tiny.arms[2].model, vocab_size=task.num_tokens)
    arm = replace(tiny.arms[2], task=task, model=model, budget=Budget(tokens=2000))
    return replace(tiny, arms=(arm,), snapshots=1)


def test_a_frozen_corpus_gives_the_batches_of_the_live_one(frozen: Path) -> None:
    assert {file.name for file in frozen.iterdir()} == {"corpus.json", "train.jsonl.xz", "heldout.jsonl.xz"}
    live = SourceCode(seq_len=64, max_document_bytes=4096).build(3)
    read = Files(path=str(frozen), seq_len=64).build(3)
    assert read.manifest()["sha256"] == live.manifest()["sha256"]
    for split in ("train", "heldout"):
        one, two = live.batch(split, 1, 16), read.batch(split, 1, 16)
        for name in ("tokens", "targets", "scored", "position", "document"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name


def test_files_split_by_their_texts_are_frozen_and_read_back_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    for number in range(40):
        (live / f"{number:02}.txt").write_text(f"{number} bottles of beer on the wall, " * (5 + number))
    command = ["data", "export", live, tmp_path / "frozen"]
    for _ in ("first", "again"):
        code, _, errors = icl_eval(monkeypatch, capsys, *command)
        assert code == 0, errors
    sources = [Files(path=str(path), seq_len=64, heldout_fraction=f).build(3)
               for path, f in ((live, 0.1), (tmp_path / "frozen", 0.7))]  # fmt: skip
    names = [source.corpus.documents["name"].tolist() for source in sources]
    assert names[0] != sorted(names[0]), "the splits are mixed in the folder"
    assert sources[0].manifest()["sha256"] == sources[1].manifest()["sha256"]
    for document, name in enumerate(names[0]):
        for source in sources:
            assert source.corpus.document(document).tobytes() == (live / name).read_bytes()
    for split in ("train", "heldout"):
        for one, two in zip(*(source.batch(split, 0, 8) for source in sources), strict=True):
            assert one is two is None or torch.equal(one, two)


def test_nothing_is_frozen_among_other_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("a text of mine")
    for target in (tmp_path, tmp_path / "a.txt"):
        code, _, errors = icl_eval(monkeypatch, capsys, "data", "export", TINY, target)
        assert code == 2
        assert "holds something else: name a folder that is new, empty, or an earlier export" in errors.replace(
            "\n", " "
        )
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("command", [["data", "export", TINY], ["data", "inspect", TINY, "--out"]], ids=lambda c: c[1])
def test_what_cannot_be_written_is_said(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    code, _, errors = icl_eval(monkeypatch, capsys, *command, tmp_path / "file" / "below")
    assert code == 2
    assert errors.startswith("error: cannot write ")
    assert "ot a directory" in errors or "File exists" in errors


@pytest.mark.filterwarnings("error")
def test_a_split_without_documents_is_shown_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.txt").write_text("all there is")
    code, out, errors = icl_eval(monkeypatch, capsys, "data", "inspect", tmp_path, "--out", tmp_path / "a.png")
    assert code == 0, errors
    assert "heldout 0" in " ".join(out.split())
    assert "nan" not in out


def test_a_frozen_corpus_that_was_changed_is_refused(frozen: Path, tmp_path: Path) -> None:
    for file in frozen.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "heldout.jsonl.xz").unlink()
    (tmp_path / "heldout.jsonl").write_text(json.dumps({"text": "x" * 99}))
    with pytest.raises(ValueError, match=r"the documents are not those whose hash stands in corpus\.json"):
        Files(path=str(tmp_path), seq_len=16).build(0)


def test_runs_are_named_by_what_their_texts_say(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    for file in corpus.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    root = run_experiment(text_arm(corpus), tmp_path / "runs", device="cpu")
    assert run_experiment(text_arm(tmp_path / "copy"), tmp_path / "runs", device="cpu") == root
    with (tmp_path / "copy" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"text": "another document " * 9}) + "\n")
    assert run_experiment(text_arm(tmp_path / "copy"), tmp_path / "runs", device="cpu") != root
    (run, _) = load_runs(tmp_path / "runs")
    assert run.arm.task.path in (str(corpus), str(tmp_path / "copy"))


def test_a_vocabulary_is_stored_with_its_run(corpus: Path, tmp_path: Path) -> None:
    experiment = text_arm(corpus, tokenizer="bpe", vocab_size=280)
    (run,) = load_runs(run_experiment(experiment, tmp_path, device="cpu"))
    stored = from_json((run.path / "tokenizer.json").read_text())
    assert stored.num_tokens == 280
    assert stored.sha256 == run.data["vocabulary"]["sha256"]
    positions = run.positions
    assert positions is not None
    assert positions.document_bytes is not None
    ratio = positions.document_bytes.sum() / positions.document_count.sum()
    assert 2 < ratio < 10
    assert sum(len(numbers) for numbers in run.data["heldout_groups"].values()) == len(positions.documents)


def test_a_preset_runs_on_files(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    preset = tmp_path / "small.py"
    preset.write_text(
        "from dataclasses import replace\n"
        "from icl_eval import Budget\n"
        "from tests.icl_eval.tiny import experiment as tiny\n"
        "def experiment():\n"
        "    arms = [replace(arm, budget=Budget(tokens=2000)) for arm in tiny().arms[1:]]\n"
        "    return replace(tiny(), arms=tuple(arms), snapshots=1)\n"
    )
    run = ["run", preset, "--text", corpus, "--out", tmp_path / "runs", "--device", "cpu"]
    code, out, errors = icl_eval(monkeypatch, capsys, *run)
    assert code == 0, errors
    assert "files, context 48, bits per byte: text-linear " in out
    assert "\n  s0 (2 documents): text-linear " in out
    tasks = {run.name: run.arm.task for run in load_runs(tmp_path / "runs")}
    assert tasks["mqar-power"] == load_preset(TINY).arms[1].task
    assert tasks["text-linear"] == Files(path=str(corpus), seq_len=48)


def test_inspect_tells_documents_lengths_and_hash(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["data", "inspect", corpus, "--tokenizer", "bpe", "--vocab-size", "280"]
    code, out, errors = icl_eval(monkeypatch, capsys, *command)
    assert code == 0, errors
    made = Files(path=str(corpus), tokenizer="bpe", vocab_size=280).corpus()
    assert made.about["sha256"] in out
    train = made.members("train")
    assert f"{made.documents['bytes'][train].sum() / made.sizes[train].sum():.3f}" in out
    assert "8 bottles of beer on the wall, 8 bottles" in out
    assert "s0" in out
    assert "figure" not in out
    assert not list(tmp_path.iterdir()), "nothing is written unasked"


@pytest.mark.parametrize(
    ("out", "drawn"), [("a.png", "a.png"), ("new", "new/document_lengths.png"), ("v1.0", "v1.0/document_lengths.png")]
)
def test_inspect_draws_into_a_file_or_a_folder(
    out: str, drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "v1.0").mkdir()
    code, shown, errors = icl_eval(monkeypatch, capsys, "data", "inspect", TINY, "--out", tmp_path / out)
    assert code == 0, errors
    assert (tmp_path / drawn).read_bytes().startswith(b"\x89PNG")
    assert f"figure: {tmp_path / drawn}" in shown.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "inspect", "source_cod"], "unknown text task or path 'source_cod'; did you mean 'source_code'"),
        (["data", "inspect", "tables"], "the preset 'tables' trains nothing"),
        (["data", "inspect", "files"], "says where its documents are in a preset"),
        (["data", "inspect", "source_code", "--tokenizer", "byte"], "unknown tokenizer 'byte'; did you mean 'bytes'"),
        (["data", "inspect", "source_code", "--tokenizer", "bpe"], "vocab_size = None: must be between 257"),
        (["data", "inspect", "source_code", "--tokenizer", "gpt2"], "tokenizer_path = None: must be a folder with"),
        (["run", "quickstart", "--text", "nowhere"], "nowhere': there is no such file or folder"),
    ],
)
def test_mistakes_are_answered_in_a_sentence(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    code, _, errors = icl_eval(monkeypatch, capsys, *arguments)
    assert code == 2
    assert message in errors


@pytest.mark.parametrize(
    ("text", "command", "message"),
    [
        ("", ["inspect"], "its documents hold no text"),
        ("hello world " * 50, ["export"], "none of its documents is in the split 'heldout'; add documents"),
    ],
    ids=["no text", "one document"],
)
def test_a_corpus_that_is_too_small_is_refused(
    text: str,
    command: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "a.txt").write_text(text)
    target = [tmp_path / "frozen"] if command == ["export"] else ["--out", tmp_path / "lengths.png"]
    code, _, errors = icl_eval(monkeypatch, capsys, "data", *command, tmp_path / "a.txt", *map(str, target))
    assert code == 2
    assert message in errors
    assert not (tmp_path / "frozen").exists()
