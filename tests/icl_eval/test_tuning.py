"""Learning rates by equal trials, and the ledger they are kept in."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from icl_eval import Budget, Experiment, load_runs, tune
from icl_eval.launch import run_here
from icl_eval.models import Softmax
from icl_eval.presets import load_preset, on_text
from icl_eval.run import run_experiment
from icl_eval.run_folder import RunFolderError
from icl_eval.statistics import overall
from icl_eval.tuning import Grid, apply_ledger, identity, read_ledger

TINY = load_preset(str(Path(__file__).parent / "tiny.py"))
ARM = TINY.arms[0]
ONE = replace(TINY, arms=(ARM,))


def grid(losses: dict[float, float | None]) -> Grid:
    return Grid([{"learning_rate": rate, "loss": loss} for rate, loss in sorted(losses.items())])


@pytest.mark.parametrize(
    ("losses", "best", "extension"),
    [
        ({1.0: 3.0, 2.0: 1.0, 4.0: 2.0}, 2.0, None),
        ({1.0: 1.0, 2.0: 2.0, 4.0: 3.0}, 1.0, 0.5),
        ({1.0: 3.0, 2.0: 2.0, 4.0: 1.0}, 4.0, 8.0),
        ({1.0: 3.0, 2.0: 2.0, 4.0: None}, 2.0, None),
        ({1.0: None, 2.0: None}, None, 0.5),
    ],
    ids=["inside", "lower edge", "upper edge", "bounded by a divergence", "all diverged"],
)
def test_a_grid_goes_on_beyond_its_edge(losses: dict, best: float | None, extension: float | None) -> None:
    assert grid(losses).best == best
    assert grid(losses).extension == extension
    assert grid(losses).at_edge == (extension is not None)


def calls_counted(tried: list[list[str]]) -> Any:
    def launch(experiment: Experiment, out: Path) -> tuple[Path, dict[str, str]]:
        tried.append([arm.name for arm in experiment.arms])
        return run_here(experiment, out, device="cpu")

    return launch


def test_every_arm_gets_equal_tries_and_none_twice(tmp_path: Path) -> None:
    tried: list[list[str]] = []
    wild = replace(ARM, name="wild", model=replace(ARM.model, mixers=(Softmax(width=16, num_heads=4),)))
    both = replace(TINY, arms=(ARM, wild))
    grids = tune(both, tmp_path, rates=(0.01, 1e8), fraction=0.5, launch=calls_counted(tried))
    assert tried[0] == ["mqar-softmax-0.01", "mqar-softmax-1e08", "wild-0.01", "wild-1e08"]
    assert all(entry["status"] == "nan" for name in grids for entry in grids[name].tries[-1:])
    assert all(grid.best is not None and grid.tries[-1]["loss"] is None for grid in grids.values())
    assert len(tried) >= 2, "the best lay at the lower edge"
    assert "mqar-softmax-0.005" in tried[1]
    (run,) = load_runs(next((tmp_path / "tune").rglob("mqar-softmax-0.01")))
    assert run.positions is not None
    assert run.positions.step == pytest.approx([ARM.schedule().steps / 2], abs=1)
    entry = next(entry for entry in grids["mqar-softmax"].tries if entry["learning_rate"] == 0.01)
    assert entry["loss"] == overall([run.positions]).value
    assert entry["interval"][0] < entry["loss"] < entry["interval"][1]
    assert run.arm.training.final_learning_rate == pytest.approx(0.001)

    before = len(tried)
    renamed = replace(both, arms=(replace(ARM, name="renamed"), wild))
    assert (
        tune(renamed, tmp_path, rates=(0.01, 1e8), fraction=0.5, launch=calls_counted(tried))["wild"] == grids["wild"]
    )
    assert len(tried) == before
    tune(ONE, tmp_path, rates=(0.01, 1e8), fraction=0.3, launch=calls_counted(tried))
    assert len(tried) > before, "another budget is another question"


def test_a_run_takes_the_best_rate_and_records_where_it_came_from(tmp_path: Path) -> None:
    def entry(rate: float, loss: float | None, budget: Budget) -> dict[str, Any]:
        shared = {"identity": identity(ONE, ARM), "budget": budget.to_dict(), "flops": budget.flops}
        return shared | {"learning_rate": rate, "loss": loss}

    small, large = Budget(flops=1e6), Budget(flops=1e7)
    ledger = tmp_path / "ledger.json"
    tries = [entry(0.5, 0.1, small), entry(0.01, 3.0, large), entry(0.02, 2.0, large), entry(0.04, None, large)]
    ledger.write_text(json.dumps({"tries": tries}))
    tuned, records = apply_ledger(replace(ONE, arms=(replace(ARM, name="other"),)), ledger)
    assert tuned.arms[0].training.learning_rate == 0.02
    assert tuned.arms[0].training.final_learning_rate == pytest.approx(0.002)
    (run,) = load_runs(run_experiment(tuned, tmp_path, device="cpu", tuning=records))
    assert run.config["tuning"] == {
        "learning_rate": 0.02, "at_edge": False, "budget": large.to_dict(), "reused": False,
        "learning_rates": [0.01, 0.02, 0.04], "losses": [3.0, 2.0, None],
    }  # fmt: skip
    harder = replace(ARM, task=replace(ARM.task, num_pairs=5))
    with pytest.raises(ValueError, match="arm 'mqar-softmax' is not in the ledger"):
        apply_ledger(replace(ONE, arms=(harder,)), ledger)
    ledger.write_text(json.dumps({"tries": [entry(0.5, None, small)]}))
    with pytest.raises(ValueError, match="arm 'mqar-softmax' diverged at every rate in the ledger"):
        apply_ledger(ONE, ledger)


def test_rates_are_reused_on_other_documents_and_the_record_says_so(tmp_path: Path) -> None:
    for name, place in product(("first", "second"), ("train", *(f"heldout{number}" for number in range(4)))):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"{place}.txt").write_text("".join(f"{name} {place} {line}\n" for line in range(100)))
    preset = load_preset("fig3_window_vs_linear", "smoke")
    one = replace(preset, arms=preset.arms[:1], eval_sequences=16)
    first, second = (on_text(one, str(tmp_path / name)) for name in ("first", "second"))
    tune(first, tmp_path, rates=(0.001, 0.002), fraction=0.5, launch=calls_counted([]))
    ledger = tmp_path / "ledger.json"
    (tuned,), records = apply_ledger(first, ledger)[0].arms, apply_ledger(first, ledger)[1]
    assert not records[tuned.name]["reused"]
    (reusing,), records = apply_ledger(second, ledger)[0].arms, apply_ledger(second, ledger)[1]
    assert records[tuned.name]["reused"]
    assert reusing.training == tuned.training
    longer = replace(second.arms[0], task=replace(second.arms[0].task, seq_len=2 * second.arms[0].task.seq_len))
    with pytest.raises(ValueError, match="is not in the ledger"):
        apply_ledger(replace(second, arms=(longer,)), ledger)


def test_saving_memory_does_not_make_another_arm() -> None:
    training = replace(ARM.training, micro_batch_size=2, compile=True, learning_rate=1.0)
    assert identity(ONE, replace(ARM, training=training)) == identity(ONE, ARM)
    assert identity(ONE, replace(ARM, training=replace(ARM.training, batch_size=8))) != identity(ONE, ARM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "fraction = 0.0: must be above 0"),
        ({"rates": (1.0, -1.0)}, "rates = .* positive finite numbers"),
    ],
)
def test_impossible_grids_are_refused(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tune(ONE, tmp_path, **options)


def test_damaged_and_missing_ledgers_are_named(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.json"
    with pytest.raises(RunFolderError, match=r"there is no ledger .*ledger.json: write it with icl-eval tune"):
        apply_ledger(ONE, ledger)
    for text in ("", "{}", '{"tries": [{}]}', '{"tries": 3}', "[]"):
        ledger.write_text(text)
        with pytest.raises(RunFolderError, match=r"the ledger .*ledger.json is damaged"):
            read_ledger(ledger)


def test_what_another_command_enters_meanwhile_stays(tmp_path: Path) -> None:
    other = replace(ONE, arms=(replace(ARM, name="other", training=replace(ARM.training, weight_decay=0.5)),))

    def launch(experiment: Experiment, out: Path) -> tuple[Path, dict[str, str]]:
        if experiment.arms[0].name.startswith(ARM.name):
            tune(other, tmp_path, rates=(0.01, 0.02), fraction=0.3)
        return run_here(experiment, out, device="cpu")

    tune(ONE, tmp_path, rates=(0.01, 0.02), fraction=0.3, launch=launch)
    assert {entry["arm"] for entry in read_ledger(tmp_path / "ledger.json")} == {ARM.name, "other"}


def test_rates_and_ledgers_that_cannot_be_kept_are_refused_before_any_try(tmp_path: Path) -> None:
    def launch(experiment: Experiment, out: Path) -> tuple[Path, dict[str, str]]:
        raise AssertionError("a try was made")

    with pytest.raises(ValueError, match=r"rates = \(0.001, inf\): must be two or more different positive finite"):
        tune(ONE, tmp_path, rates=(1e-3, float("inf")), launch=launch)
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"cannot write .*/file/ledger\.json"):
        tune(ONE, tmp_path, rates=(1e-3, 2e-3), ledger=tmp_path / "file" / "ledger.json", launch=launch)


def test_rates_that_look_alike_have_tries_of_their_own(tmp_path: Path) -> None:
    rates = (0.0100000001, 0.0100000002)
    assert tune(replace(ONE, seeds=(3,)), tmp_path, rates=rates, fraction=0.3)[ARM.name].rates[:2] == list(rates)
