"""Our models in lm-eval: against a plain forward pass, with awkward text, killed and resumed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance

from icl_eval import load_run
from icl_eval.cli import main
from icl_eval.lm_eval_adapter import RunFolderLM
from icl_eval.measure import ScoredLoss
from icl_eval.run_folder import RunFolderError
from icl_eval.text_tokens import SubwordTokenizer
from tests.icl_eval.tiny_models import AWKWARD, awkward_text, save_tokenizer, tiny_runs, write_documents

MIXERS = ("softmax", "window", "linear", "power")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("lm_eval")
    return tiny_runs(folder / "runs", write_documents(folder / "documents"))


def requests(kind: Any, *args: tuple) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(args)]


def plain_forward(run: Path, text: bytes) -> torch.Tensor:
    """Log-probabilities ``[T, 256]`` of the byte after each byte, from one call of the model on the whole text."""
    from icl_eval.checkpoint import load_weights

    model = load_run(run).arm.model.build()
    load_weights(run / "checkpoint", ScoredLoss(model))
    with torch.no_grad():
        return model(torch.tensor([list(text)]))[0][0].double().log_softmax(-1)


def expected(run: Path, context: str, continuation: str) -> tuple[float, bool]:
    before, after = context.encode() or b"\n", continuation.encode()
    scores = plain_forward(run, before + after)[len(before) - 1 : -1]
    target = torch.tensor(list(after), dtype=torch.int64)
    log_likelihood = scores.gather(1, target[:, None]).sum().item()
    return log_likelihood, bool((scores.argmax(-1) == target).all())


@pytest.mark.parametrize("mixer", MIXERS)
def test_log_likelihoods_equal_a_plain_forward_pass(mixer: str, runs: dict[str, Path]) -> None:
    lm = RunFolderLM(str(runs[mixer]), device="cpu", resume=False)
    pairs = [
        ("", "a"),
        ("", AWKWARD),
        ("the cat ", "saw"),
        ("ends in blanks  \n ", " and so begins"),
        (AWKWARD, awkward_text(1, 40)),
        ("x", awkward_text(2, 900)),
        (awkward_text(3, 900), "y"),
        ("nothing", ""),
    ]
    answers = lm.loglikelihood(requests("loglikelihood", *pairs))
    for pair, (log_likelihood, greedy) in zip(pairs, answers, strict=True):
        reference = expected(runs[mixer], *pair) if pair[1] else (0.0, True)
        assert log_likelihood == pytest.approx(reference[0], abs=1e-4), pair[0][:20]
        assert greedy == reference[1]


@pytest.mark.parametrize("mixer", MIXERS)
def test_rolling_reads_whole_documents(mixer: str, runs: dict[str, Path]) -> None:
    lm = RunFolderLM(str(runs[mixer]), device="cpu", resume=False)
    texts = [awkward_text(4, 1200), "é", awkward_text(5, 30)]
    assert len(texts[0].encode()) > 2 * 1024, "several chunks"
    answers = lm.loglikelihood_rolling(requests("loglikelihood_rolling", *((text,) for text in texts)))
    for text, log_likelihood in zip(texts, answers, strict=True):
        assert log_likelihood == pytest.approx(expected(runs[mixer], "", text)[0], abs=1e-4)


@pytest.mark.parametrize("mixer", MIXERS)
def test_generation_is_the_plain_models_until_a_stop_string(mixer: str, runs: dict[str, Path]) -> None:
    prompt = "the cat "
    text = prompt.encode()
    for _ in range(40):
        text += bytes([int(plain_forward(runs[mixer], text)[-1].argmax())])
    whole = text[len(prompt) :].decode(errors="replace")
    lm = RunFolderLM(str(runs[mixer]), device="cpu", resume=False)

    def write(**options: Any) -> str:
        return lm.generate_until(requests("generate_until", (prompt, {"max_gen_toks": 40, **options})))[0]

    assert write() == whole
    stop = whole[11:14]
    assert write(until=[stop]) == whole[: whole.index(stop)]
    assert write(until=["never written", stop, whole[20:]]) == whole[: whole.index(stop)]
    assert write(max_gen_toks=7) == text[len(prompt) :][:7].decode(errors="replace")


def test_samples_differ_repeat_and_do_not_depend_on_the_batch(runs: dict[str, Path]) -> None:
    options = {"max_gen_toks": 12, "do_sample": True, "temperature": 1.0, "until": []}
    three = requests("generate_until", *[("abcd", options)] * 3, ("wxyz", options))
    first = RunFolderLM(str(runs["power"]), device="cpu", resume=False).generate_until(three)
    again = RunFolderLM(str(runs["power"]), device="cpu", resume=False, batch_size=1).generate_until(three)
    other = RunFolderLM(str(runs["power"]), device="cpu", resume=False, seed=1).generate_until(three)
    assert len(set(first[:3])) == 3
    assert first == again
    assert first != other
    likeliest = {**options, "top_k": 1}
    greedy = {"max_gen_toks": 12, "until": []}
    lm = RunFolderLM(str(runs["power"]), device="cpu", resume=False)
    assert len(set(lm.generate_until(requests("generate_until", ("ab", likeliest), ("ab", greedy))))) == 1
    assert len(set(lm.generate_until(requests("generate_until", ("ab", {**options, "top_p": 0}), ("ab", greedy))))) == 1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_beams": 4}, "num_beams = 4: must be 1"),
        ({"temprature": 1}, "did you mean 'temperature'"),
        ({"temperature": None}, "temperature = None: must be a finite number"),
        ({"do_sample": True, "temperature": -1}, "temperature = -1.0: must be at least 0"),
        ({"do_sample": True, "top_k": -1}, "top_k = -1: must be at least 0"),
        ({"do_sample": True, "top_p": 1.5}, "top_p = 1.5: must be from 0 to 1"),
        ({"max_gen_toks": float("inf")}, "max_gen_toks = inf: must be a finite number"),
        ({"max_gen_toks": -5}, "max_new_tokens = -5: must be at least 0"),
    ],
)
def test_generation_arguments_that_cannot_be_met_are_refused(
    options: dict, sentence: str, runs: dict[str, Path]
) -> None:
    with pytest.raises(ValueError, match=sentence):
        RunFolderLM(str(runs["power"]), device="cpu", resume=False).generate_until(
            requests("generate_until", ("a", options))
        )


def test_a_killed_evaluation_goes_on(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the first batch, with the last line torn: what was answered is not computed again."""
    pairs = [(awkward_text(seed, 10), "and so on") for seed in range(6)]
    asked = requests("loglikelihood", *pairs)
    whole = RunFolderLM(str(runs["linear"]), device="cpu", resume=False).loglikelihood(asked)
    lm = RunFolderLM(str(runs["linear"]), device="cpu", batch_size=2)
    batches = []
    plain_score = lm._score

    def killed(pairs: dict) -> list:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(len(pairs))
        return plain_score(pairs)

    monkeypatch.setattr(lm, "_score", killed)
    with pytest.raises(KeyboardInterrupt):
        lm.loglikelihood(asked)
    (file,) = (runs["linear"] / "lm_eval").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    resumed = RunFolderLM(str(runs["linear"]), device="cpu", batch_size=2)
    computed = []
    monkeypatch.setattr(resumed, "_score", lambda pairs: computed.extend(pairs) or plain_score(pairs))
    np.testing.assert_allclose([a[0] for a in resumed.loglikelihood(asked)], [a[0] for a in whole], atol=1e-5)
    assert len(computed) == 3
    assert all(json.loads(line) for line in file.read_text().splitlines())


def test_a_batch_that_does_not_fit_is_halved(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    lm = RunFolderLM(str(runs["power"]), device="cpu", resume=False)
    asked = requests("loglikelihood", *[("x" * n, "yes") for n in range(1, 9)])
    reference = lm.loglikelihood(asked)
    small = RunFolderLM(str(runs["power"]), device="cpu", resume=False)
    sizes = []
    plain_read = small.model.read

    def read(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sizes.append(len(tokens))
        if len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain_read(tokens, *args, **kwargs)

    monkeypatch.setattr(small.model, "read", read)
    with pytest.warns(UserWarning, match="out of memory with 8 sequences .* going on with 4"):
        answers = small.loglikelihood(asked)
    assert sizes == [8, 4, 2, 2, 2, 2]
    np.testing.assert_allclose([a[0] for a in answers], [a[0] for a in reference], atol=1e-5)
    monkeypatch.setattr(small.model, "read", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("no")))
    with pytest.raises(ValueError, match="does not fit into memory, even alone"):
        small.loglikelihood(requests("loglikelihood", ("a", "b")))


def test_tokens_that_span_context_and_continuation(tmp_path: Path) -> None:
    save_tokenizer(tmp_path, ["the cat the cat the cat"] * 3)
    tokenizer = SubwordTokenizer.from_file(tmp_path / "tokenizer.json")
    text = "the cat " + AWKWARD
    encoded = tokenizer.encode(text)
    assert tokenizer.decode(encoded.tokens.tolist()) == text
    assert encoded.size.sum() == len(text.encode())
    np.testing.assert_array_equal(encoded.start, np.cumsum(encoded.size) - encoded.size)
    joined = tokenizer.encode("the cat").tokens
    assert len(joined) < len(tokenizer.encode("the c").tokens) + len(tokenizer.encode("at").tokens)


def test_importing_icl_eval_registers_the_model_and_little_else() -> None:
    code = (
        "import sys, icl_eval; from lm_eval.api.registry import model_registry; "
        "assert 'icl-eval' in model_registry; assert 'torch' not in sys.modules; "
        "assert 'lm_eval.evaluator' not in sys.modules; assert 'hf' in model_registry; "
        "print(model_registry.get('icl-eval').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "RunFolderLM"


@pytest.mark.parametrize("batch_size", ["0", -1, "many", "1.5"])
def test_batch_sizes_that_hold_nothing_are_refused(batch_size: int | str) -> None:
    with pytest.raises(ValueError, match=r"batch_size = .*: must be a whole number of at least 1, or 'auto'"):
        RunFolderLM("anywhere", batch_size=batch_size)


def test_runs_that_cannot_read_text_are_refused(tmp_path: Path, runs: dict[str, Path]) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(runs["power"], copy)
    config = json.loads((copy / "config.json").read_text())
    config["arm"]["model"]["vocab_size"] = config["arm"]["task"]["vocab_size"] = 300
    config["arm"]["task"]["tokenizer"] = "bpe"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(RunFolderError, match="300 tokens are not text"):
        RunFolderLM(str(copy), device="cpu")
    save_tokenizer(copy, ["abc abc abd"] * 9, 320)
    size = SubwordTokenizer.from_file(copy / "tokenizer.json").num_tokens
    config["arm"]["model"]["vocab_size"] = config["arm"]["task"]["vocab_size"] = 257
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"tokeniser has {size} tokens, the model 257"):
        RunFolderLM(str(copy), device="cpu")
    shutil.rmtree(copy / "checkpoint")
    (copy / "tokenizer.json").unlink()
    shutil.copy(runs["power"] / "config.json", copy)
    with pytest.raises(RunFolderError, match="holds no checkpoint"):
        RunFolderLM(str(copy), device="cpu")


@pytest.mark.slow  # a minute, in which lm-eval lists its tasks; test_evaluate_your_model runs the command too
def test_the_command_runs_a_task_from_a_file(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": awkward_text(s, 20)}) + "\n" for s in range(3)))
    task = {
        "task": "three_texts",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}},
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (tmp_path / "three_texts.yaml").write_text(json.dumps(task))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def command(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["icl-eval", "lm-eval", str(runs["power"]), *options])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0

    code = command("--tasks", "three_texts", "--include_path", str(tmp_path), "--device", "cpu")
    assert code == 0
    text = "".join(awkward_text(s, 20) for s in range(3))
    nats = -sum(expected(runs["power"], "", awkward_text(s, 20))[0] for s in range(3))
    table = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    header, _, row = [[cell.strip() for cell in line] for line in table]
    assert header == ["Tasks", "Version", "Filter", "n-shot", "Metric", "", "Value", "", "Stderr"], (
        "see constraints.txt"
    )
    named = dict(zip(header, row, strict=True))
    assert (named["Tasks"], named["Metric"]) == ("three_texts", "bits_per_byte")
    assert float(named["Value"]) == pytest.approx(nats / np.log(2) / len(text.encode()), abs=1e-3)
    assert command("--tasks", "three_text", "--include_path", str(tmp_path)) == 2
    assert "did you mean 'three_texts'?" in capsys.readouterr().err
    assert command("--tasks", "three_texts", "--model", "hf") == 2
