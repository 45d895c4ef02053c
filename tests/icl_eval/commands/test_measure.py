"""Any causal model measured on any documents: against direct computations with torch."""

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from icl_eval import load_run, load_runs
from icl_eval.causal import Pretrained
from icl_eval.cli import main
from icl_eval.commands.data import text_tasks
from icl_eval.measure_text import measure_text
from icl_eval.spans import choose_spans
from icl_eval.subjects import find_subjects
from icl_eval.summary import summarise
from tests.icl_eval.tiny_models import save_gpt2, save_llama, save_tokenizer, tiny_runs, write_documents

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, a GPT-2, a Llama and runs of ours."""
    root = tmp_path_factory.mktemp("measure")
    documents = write_documents(root / "documents", words=350)
    texts = [file.read_text() for file in sorted(documents.glob("train/*"))]
    save_gpt2(root / "gpt2", texts)
    save_llama(root / "llama", texts)
    shutil.copytree(tiny_runs(root / "runs", documents)["power"].parents[1], root / "ours")
    return root


def command(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    monkeypatch.setattr(sys, "argv", ["icl-eval", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def measured(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        models = folder / "gpt2", folder / "llama", folder / "ours" / "power"
        assert command(
            patch, "measure", *models, "--data", folder / "documents", "--context", 48, "--out", folder / "out",
            "--device", "cpu", "--chunk", 7,
        ) == 0  # fmt: skip
    (root,) = (folder / "out").iterdir()
    return root


def spelling(token: str) -> bytes:
    """The bytes that a token of GPT-2's alphabet stands for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {chr(byte): byte for byte in printable}
    letters |= {chr(256 + number): byte for number, byte in enumerate(b for b in range(256) if b not in printable)}
    return bytes(letters[letter] for letter in token)


def direct(folder: Path, name: str, texts: list[str]) -> dict[str, np.ndarray]:
    """Summed losses and counts by tokens seen, and by bytes seen, from one forward pass of each text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(folder / name) for kind in (AutoModelForCausalLM, AutoTokenizer))
    sums = {axis: np.zeros((2, 1000)) for axis in ("tokens", "bytes")}
    for text in texts:
        ids, opened = torch.tensor([tokenizer(text)["input_ids"]]), name == "llama"
        assert (ids[0, 0] == tokenizer.bos_token_id) == opened
        pieces = [spelling(piece) for piece in tokenizer.convert_ids_to_tokens(ids[0, opened:])]
        assert b"".join(pieces) == text.encode()
        with torch.no_grad():
            scores = model(ids).logits[0].double().log_softmax(-1)
        for index in range(1, ids.shape[1]):
            loss = -scores[index - 1, ids[0, index]].item()
            seen = index - opened
            sums["tokens"][:, seen] += loss, 1
            sums["bytes"][:, len(b"".join(pieces[:seen]))] += loss, 1
    return sums


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_curves_equal_a_direct_computation(name: str, folder: Path, measured: Path) -> None:
    models = [Pretrained(str(folder / n)) for n in ("gpt2", "llama")]
    from icl_eval.text_tokens import ByteTokenizer

    corpus = text_tasks(str(folder / "documents"), {})[0].text()
    spans = choose_spans(corpus, [*(m.tokenizer for m in models), ByteTokenizer()], context=48)
    reference = direct(folder, name, [span.text for span in spans])
    for axis in ("tokens", "bytes"):
        found = load_run(measured / axis / name / "seed0").positions
        assert found is not None
        size = found.nll_sum.shape[1]
        np.testing.assert_array_equal(found.count, reference[axis][1, :size])
        np.testing.assert_allclose(found.nll_sum[0], reference[axis][0, :size], atol=1e-5 * len(spans))
        assert found.count.sum() > 100


def test_all_models_read_the_same_text(folder: Path, measured: Path) -> None:
    runs = load_runs(measured / "bytes")
    assert [run.name for run in runs] == ["gpt2", "llama", "power"]
    totals = {run.name: run.positions.document_bytes.sum(axis=1) for run in runs}
    np.testing.assert_array_equal(runs[0].positions.documents, runs[2].positions.documents)
    (first,) = np.unique(totals["llama"] - totals["power"] - 1)[:1]
    assert first >= 0, "the Llama also scores the first token, which has nothing before it but its own opening"
    edges = runs[0].positions.bin_edges
    inner = slice(int(np.searchsorted(edges, 12)), None)
    for name in ("gpt2", "llama"):
        text = runs[0].positions.document_bytes[:, inner].sum()
        assert totals[name].sum() > 0
        assert abs(text - runs[2].positions.document_bytes[:, inner].sum()) < 0.1 * text


def test_tables_are_printed_whole_on_narrow_screens(measured: Path, tmp_path: Path) -> None:
    texts = []
    for width in (40, 400):
        console = Console(width=width, file=io.StringIO())
        summarise(load_runs(measured), tmp_path, console)
        assert console.width == width
        assert isinstance(console.file, io.StringIO)
        texts.append([line.rstrip() for line in console.file.getvalue().splitlines() if line.startswith("gpt2 ")])
    assert texts[0] == texts[1]
    assert len(texts[0]) == 2
    assert "…" not in "".join(texts[0])


def test_our_model_is_measured_as_in_training(folder: Path) -> None:
    """Byte models: the same losses as the plain forward pass, on the run's own held-out documents."""
    from icl_eval.causal import load_trained

    trained = load_trained(folder / "ours" / "linear" / "seed0", CPU)
    corpus = text_tasks(str(folder / "documents"), {})[0].text()
    spans = choose_spans(corpus, [trained.tokenizer], context=300, unit="bytes", most=5)
    found = measure_text(trained.model, trained.tokenizer, spans, name="x", chunk=13)
    reference = np.zeros(301)
    for span in spans:
        tokens = torch.tensor([list(span.text.encode())])
        with torch.no_grad():
            nll, _ = trained.model.model.nll(tokens[:, :-1], tokens[:, 1:])
        reference[1 : 1 + nll.shape[1]] += nll[0].double().numpy()
    np.testing.assert_allclose(found.bytes.nll_sum, reference[: len(found.bytes.nll_sum)], atol=1e-4)
    np.testing.assert_array_equal(found.bytes.nll_sum, found.tokens.nll_sum)
    assert found.state_elements == trained.run.arm.model.state_size(300).mathematical


def test_the_state_of_a_cache_is_counted(measured: Path) -> None:
    elements = {run.name: run.config["costs"]["state_elements"]["mathematical"] for run in load_runs(measured)}
    longest = {run.name: run.config["costs"]["context"] for run in load_runs(measured / "tokens")}
    assert elements["gpt2"] == 2 * 2 * 16 * longest["gpt2"]
    assert elements["llama"] == 2 * 2 * 8 * (longest["llama"] + 1), "two of four heads keep keys, one token opens"


def test_plot_and_compare_read_the_folder(
    measured: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "plot", measured) == 0
    out = capsys.readouterr().out
    assert "context seen in bytes" in out
    assert "training.png" not in out
    assert command(monkeypatch, "compare", measured, "--baseline", "gpt2") == 0
    out = capsys.readouterr().out
    assert "llama" in out
    assert (measured / "differences.png").stat().st_size > 10_000
    assert command(monkeypatch, "compare", measured, "--baseline", "gpt") == 2
    assert "did you mean 'gpt2'" in capsys.readouterr().err
    assert command(monkeypatch, "compare", measured / "bytes" / "gpt2") == 2
    assert "no two arms" in capsys.readouterr().err


def test_the_report_has_them(measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, "report", measured, "--out", tmp_path) == 0
    text = (tmp_path / "report.md").read_text()
    assert "Measured: context seen in bytes" in text
    assert "icl-eval measure" in text
    assert (tmp_path / "figures" / "measured-loss_by_position.png").exists()


def test_a_second_call_measures_nothing(
    measured: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in measured.rglob("positions.npz")}
    models = folder / "gpt2", folder / "llama", folder / "ours" / "power"
    command(
        monkeypatch, "measure", *models, "--data", folder / "documents", "--context", 48, "--out", folder / "out",
        "--device", "cpu", "--chunk", 7,
    )  # fmt: skip
    assert before == {file: file.stat().st_mtime_ns for file in (folder / "out").rglob("positions.npz")}


def test_a_rotary_model_reads_beyond_its_training_context_and_a_table_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--data", folder / "documents", "--context", 200, "--out", tmp_path, "--device", "cpu"
    assert command(monkeypatch, "measure", folder / "llama", *options) == 0
    (run,) = load_runs(list(tmp_path.rglob("tokens")))
    assert run.config["trained_context"] == 64
    assert run.positions.count[150:].sum() > 0
    capsys.readouterr()
    assert command(monkeypatch, "measure", folder / "gpt2", *options) == 2
    error = " ".join(capsys.readouterr().err.split())
    limit = "reads 64 tokens at most (its positions are a table), and this context comes to 200: lower --context"
    assert error == f"error: gpt2 {limit}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--context", "100000"], "documents (heldout) hold a context of 100,000 tokens, too few to resample"),
        (["--unit", "byte"], "unknown unit 'byte'; did you mean 'bytes'?"),
        (["--dtype", "float16"], "unknown dtype 'float16'; did you mean 'bfloat16'?"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(
    words: list[str], sentence: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    options = "--data", folder / "documents", "--out", tmp_path, "--device", "cpu"
    assert command(monkeypatch, "measure", folder / "llama", *options, *words) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_loaded_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot load nobody/nothing without the network"):
        Pretrained("nobody/nothing", offline=True)
    mixed = tmp_path / "mixed"
    shutil.copytree(folder / "gpt2", mixed)
    save_tokenizer(mixed, [file.read_text() for file in (folder / "documents").rglob("*.txt")], 330)
    with pytest.raises(ValueError, match=r"its tokeniser has \d+ tokens, the model \d+: they do not belong together"):
        Pretrained(str(mixed))
    strange = tmp_path / "strange"
    shutil.copytree(folder / "llama", strange)
    config = json.loads((strange / "config.json").read_text())
    config.update(model_type="strange", auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"})
    (strange / "config.json").write_text(json.dumps(config))
    (strange / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: ...\nclass M: ...\n")
    with pytest.raises(ValueError, match="brings code of its own, which runs only with --trust-remote-code"):
        Pretrained(str(strange))
    assert not (tmp_path / "ran").exists()


def test_no_more_logits_exist_than_memory_allows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of a long span are made a chunk at a time, whatever its length."""
    monkeypatch.setattr("icl_eval.scoring.LOGIT_ELEMENTS", 330 * 20)
    pretrained = Pretrained(str(folder / "llama"))
    model = pretrained.load(CPU, torch.float32)
    sizes = []
    read = model.read

    def watched(*args: Any, **kwargs: Any) -> Any:
        logits, state = read(*args, **kwargs)
        sizes.append(logits.numel())
        return logits, state

    monkeypatch.setattr(model, "read", watched)
    corpus = text_tasks(str(folder / "documents"), {})[0].text()
    spans = choose_spans(corpus, [pretrained.tokenizer], context=150, most=4)
    measure_text(model, pretrained.tokenizer, spans, name="llama")
    assert max(sizes) <= 330 * 16 * len(spans)
    assert len(sizes) >= 10


def test_a_misspelt_folder_is_not_looked_for_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/one").mkdir(parents=True)
    with pytest.raises(ValueError, match="there is no folder 'runs/on', and no model of the hub can be called so"):
        find_subjects(["runs/on"], torch.device("cpu"), torch.float32, trust_remote_code=False, offline=False)
