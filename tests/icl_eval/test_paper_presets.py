"""Every preset of the paper runs at smoke scale, and is what its claims need at every scale."""

from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from icl_eval import load_runs
from icl_eval.claims import CLAIMS
from icl_eval.experiment import Untrained
from icl_eval.minutes import total_minutes
from icl_eval.presets import define_preset, load_preset, preset_files
from icl_eval.run import run_experiment
from icl_eval.tasks.text import source_code, tasks
from icl_eval.tasks.text.source_code import SourceCodeReader
from icl_eval.tuning import at_rate
from icl_eval.verdicts import verdicts

ROOT = Path(__file__).parents[2]
DOCUMENT, RESULTS = ROOT / "docs" / "reproduce.md", ROOT / "results"
UNTRAINED = ("tables", "fig6_kernels")
TRAINED = sorted(preset_files().keys() - {"quickstart", "state_frontier", *UNTRAINED})


@pytest.fixture(autouse=True, scope="module")
def small_corpus() -> Iterator[None]:
    """Some modules of the standard library in place of every installed package."""
    few = [(name, list(islice(files, 1))) for name, files in islice(source_code._packages(), 80)]
    assert all(name.startswith("stdlib/") for name, _ in few)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_code, "_packages", lambda: iter(few))
        patch.setattr(tasks, "_source_code", cache(SourceCodeReader))
        yield


def test_every_claim_has_a_preset() -> None:
    assert {claim.preset for claim in CLAIMS} <= {*TRAINED, *UNTRAINED}
    assert [f"C{n}" for n in range(1, 15)] == [claim.name for claim in CLAIMS if claim.name[1:].isdigit()]


@pytest.mark.filterwarnings("ignore:eval_sequences")
@pytest.mark.parametrize("name", TRAINED)
def test_smoke_runs_and_decides_nothing(name: str, tmp_path: Path) -> None:
    experiment = load_preset(name)
    assert experiment.name == f"{name}-smoke"
    folder = run_experiment(experiment, tmp_path, device="cpu")
    runs = load_runs(folder)
    assert [run.name for run in runs] == [arm.name for arm in experiment.arms]
    assert all(run.status["status"] == "complete" for run in runs)
    for verdict in verdicts(runs):
        if verdict.claim.preset == name:
            assert verdict.outcome == "inconclusive"
            assert "scale: smoke scale" in verdict.reason, verdict.reason


@pytest.mark.parametrize("scale", ["h200", "paper"])
@pytest.mark.parametrize("name", TRAINED)
def test_budgets_match_at_scale(name: str, scale: str) -> None:
    experiment = load_preset(name, scale)
    for arm in experiment.arms:
        assert abs(arm.schedule().mismatch) < 0.02, arm.name
    assert len({(arm.training.learning_rate, arm.training.betas) for arm in experiment.arms}) == 1


def test_the_central_preset_mirrors_the_papers_weight_state_ratios() -> None:
    reduced, paper = (
        {
            arm.name: arm.model.flops_per_token(arm.task.seq_len).weight_state_ratio
            for arm in load_preset("fig9_long_context", scale).arms
        }
        for scale in ("h200", "paper")
    )
    for name, ratio in reduced.items():
        assert 0.4 < ratio / paper[name] < 2.5, name


@pytest.mark.parametrize("name", TRAINED)
def test_presets_compile_but_for_smoke(name: str) -> None:
    for scale, compiled in (("smoke", False), ("h200", True), ("paper", True)):
        assert {arm.training.compile for arm in load_preset(name, scale).arms} == {compiled}, scale


def test_published_runs_are_those_of_the_central_preset() -> None:
    """Further seeds join them only while nothing but the text and the tuned rates differs."""
    published = {run.name: run.arm for run in load_runs(RESULTS / "fig9_long_context")}
    arms = {arm.name: arm for arm in load_preset("fig9_long_context", "h200").arms}
    assert published.keys() == arms.keys()
    for name, arm in published.items():
        preset = at_rate(arms[name], arm.training.learning_rate)
        assert (preset.training, preset.model, preset.budget) == (arm.training, arm.model, arm.budget)


@pytest.mark.parametrize("name", UNTRAINED)
def test_presets_without_training_say_where_the_answer_comes_from(name: str) -> None:
    preset = define_preset(name)
    assert isinstance(preset, Untrained)
    assert preset.commands
    with pytest.raises(ValueError, match=f"the preset {name!r} trains nothing"):
        load_preset(name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig9_long_context", "h20"), "^unknown scale 'h20'; did you mean 'h200'"),
        (("quickstart", "h200"), "has no scales"),
    ],
)
def test_unknown_scales_are_named(arguments: tuple[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_preset(*arguments)


@pytest.mark.parametrize("name", TRAINED)
def test_the_minutes_in_the_document_are_those_of_the_code(name: str) -> None:
    row = next(line for line in DOCUMENT.read_text().splitlines() if line.startswith(f"| `{name}` |"))
    claims = " ".join(claim.name for claim in CLAIMS if claim.preset == name) or "beyond the paper"
    assert row == f"| `{name}` | {claims} | {total_minutes(load_preset(name, 'h200')):.0f} |"
