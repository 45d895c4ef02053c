"""Our tasks in lm-eval, for byte models and for subword models, and RULER's own on a model of ours."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lm_eval
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from icl_eval.commands.path import LM_EVAL_TASKS
from icl_eval.lm_eval_adapter import RunFolderLM
from icl_eval.tasks.lm_eval.text_forms import documents
from icl_eval.tasks.text_form import TEXT_FORMS
from tests.icl_eval.tiny_models import save_tokenizer, tiny_runs, write_documents

NAMES = ("icl_needle", "icl_phonebook", "icl_variable_tracking", "icl_mqar", "icl_classification")


class Oracle(RunFolderLM):
    """Answers every question right; knows the answers from the documents, not from the prompt."""

    def __init__(self, run: str, right: bool = True):
        super().__init__(run, device="cpu", resume=False)
        self.right = right

    def generate_until(self, requests: list) -> list[str]:
        return [" ".join(r.doc["answers"]) if self.right else "nothing" for r in requests]

    def loglikelihood(self, requests: list) -> list[tuple[float, bool]]:
        return [(float((r.args[1].strip() == r.doc["answers"][0]) == self.right), False) for r in requests]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("lm_eval_tasks")
    return str(tiny_runs(folder / "runs", write_documents(folder / "documents"))["power"])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    prompts = [documents(form, num_examples=2)["test"][0]["prompt"] for form in TEXT_FORMS]
    save_tokenizer(folder, prompts, 400)
    return str(folder)


def evaluate(lm: Any, tasks: list[str], **metadata: Any) -> dict[str, dict[str, float]]:
    manager = TaskManager(include_path=str(LM_EVAL_TASKS), include_defaults=False, metadata=metadata)
    results = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0, verbosity=None)
    assert results is not None
    scores = {}
    for task, metrics in results["results"].items():
        scores[task] = {k.split(",")[0]: v for k, v in metrics.items() if k.startswith("score/") and "stderr" not in k}
    return scores


@pytest.mark.parametrize("right", [True, False], ids=["oracle", "wrong"])
def test_scores_stand_by_length_and_depth(run: str, right: bool) -> None:
    scores = evaluate(Oracle(run, right), ["icl_eval"], lengths=[700, 1000], num_examples=12)
    assert set(scores) == set(NAMES)
    for task, metrics in scores.items():
        assert {"score/700", "score/1000"} <= set(metrics)
        depths = [name for name in metrics if name.startswith("score/1000/depth_")]
        assert len(depths) >= (1 if task == "icl_classification" else 3), "evidence of a class begins early"
        assert set(metrics.values()) == {float(right)}


def test_a_model_of_ours_answers_like_chance_at_most(run: str) -> None:
    lm = RunFolderLM(run, device="cpu", resume=False)
    scores = evaluate(lm, ["icl_needle", "icl_mqar"], lengths=[700], num_examples=4)
    assert scores["icl_needle"]["score/700"] == 0
    assert 0 <= scores["icl_mqar"]["score/700"] <= 1


@pytest.mark.parametrize("form", TEXT_FORMS)
def test_documents_repeat_and_fit(form: str) -> None:
    first, again = (documents(form, lengths=[700, 1400], num_examples=4)["test"] for _ in range(2))
    assert first.to_list() == again.to_list()
    assert first["length"] == [700] * 4 + [1400] * 4
    for doc in first:
        assert 0.8 * doc["length"] <= len(doc["prompt"]) <= doc["length"]
        assert 0 <= doc["depth"] < 1
        assert not doc["choices"] or doc["choices"][doc["answer"]] == doc["answers"][0]
    assert documents(form, lengths=700, num_examples=1, seed=1)["test"][0]["prompt"] != first[0]["prompt"]


def test_lengths_in_tokens_of_any_tokeniser(tokenizer: str) -> None:
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(tokenizer)
    for form in TEXT_FORMS:
        for doc in documents(form, lengths=[512], unit="tokens", tokenizer=tokenizer, num_examples=2)["test"]:
            count = len(encode(doc["prompt"])["input_ids"])
            assert 0.85 * 512 <= count <= 512, form


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"length": 512}, "unknown metadata 'length'; did you mean 'lengths'"),
        ({"lengths": "long"}, "must be positive whole numbers"),
        ({"lengths": [10]}, "num_bytes = 10"),
        ({"unit": "words"}, "must be 'bytes' or 'tokens'"),
        ({"unit": "tokens"}, "needs tokenizer"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_metadata_that_makes_no_sense_is_refused(metadata: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        documents("needle", **metadata)


@pytest.mark.slow
def test_the_tasks_are_found_by_lm_evals_own_command(run: str, tokenizer: str, tmp_path: Path) -> None:
    """A Hugging Face model, lm-eval's command, and our tasks by path."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path / "gpt2"
    save_tokenizer(folder, ["the cat"], 300)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=1024, n_embd=8, n_layer=1, n_head=1)).save_pretrained(folder)
    path = subprocess.run(
        [sys.executable, "-m", "icl_eval.cli", "path", "lm-eval-tasks"], capture_output=True, text=True, check=True
    ).stdout.strip()
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={folder}",
        "--include_path", path, "--tasks", "icl_mqar", "--device", "cpu",
        "--metadata", json.dumps({"lengths": [300], "num_examples": 3}), "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    (file,) = (tmp_path / "out").rglob("*.json")
    assert any(key.startswith("score/300") for key in json.loads(file.read_text())["results"]["icl_mqar"])


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tokeniser with whole words, without which RULER's searches for lengths take minutes."""
    from wonderwords import RandomWord

    known = RandomWord().filter(include_categories=["noun", "adjective", "verb"])
    noise = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
    folder = tmp_path_factory.mktemp("words")
    save_tokenizer(folder, [noise, " ".join(known)], 6000)
    return str(folder)


def ruler(task: str, run: str, tokenizer: str) -> float:
    results = simple_evaluate(
        model=RunFolderLM(run, device="cpu", resume=False),
        tasks=[task],
        task_manager=TaskManager(
            include_path=Path(lm_eval.__file__).parent / "tasks" / "ruler",
            include_defaults=False,
            metadata={"tokenizer": tokenizer, "max_seq_lengths": [4096]},
        ),
        limit=1,
        bootstrap_iters=0,
        gen_kwargs={"max_gen_toks": 8},
    )
    assert results is not None
    return results["results"][task]["4096,none"]


@pytest.mark.slow  # lm-eval lists its tasks; our own run in the tests above
def test_a_task_of_ruler_runs_on_our_models(run: str, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, [""], 257)
    assert ruler("niah_multikey_2", run, str(tmp_path)) == 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_3", "ruler_vt", "ruler_cwe", "ruler_fwe"])
def test_rulers_other_offline_tasks_run_too(task: str, run: str, words: str) -> None:
    assert 0 <= ruler(task, run, words) <= 1
