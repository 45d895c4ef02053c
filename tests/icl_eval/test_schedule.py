"""Learning rates, forks, and the points at which a run is measured."""

import signal
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from icl_eval import Arm, Budget, Training, load_runs
from icl_eval.models import ModelConfig
from icl_eval.presets import load_preset
from icl_eval.run import run_experiment
from icl_eval.schedule import learning_rate_at, make_plan, snapshot_steps
from icl_eval.tables import plan_table
from icl_eval.tasks import MQAR
from tests.icl_eval.processes import start
from tests.icl_eval.test_run import assert_identical

TINY = str(Path(__file__).parent / "tiny.py")


def arm(**training: object) -> Arm:
    task = MQAR(vocab_size=64, num_pairs=8)
    budget = Budget(tokens=1e6)
    return Arm(name="a", task=task, model=ModelConfig(vocab_size=64), training=Training(**training), budget=budget)


def rates(arm: Arm, steps: int) -> dict[float | None, dict[int, float]]:
    """Learning rate of every step, by branch."""
    plan = make_plan(arm, steps, 9)
    found: dict[float | None, dict[int, float]] = {}
    for leg in plan.legs:
        at = {step: learning_rate_at(arm.training, plan, leg, step) for step in range(leg.start, leg.stop)}
        found.setdefault(leg.branch, {}).update(at)
    return found


def test_a_cosine_warms_up_and_ends_where_it_should() -> None:
    rate = list(rates(arm(), 1000)[None].values())
    assert rate[0] < rate[50] < rate[99]
    assert max(rate) == pytest.approx(3e-4)
    assert rate[-1] == pytest.approx(1e-5)
    assert all(later < earlier for earlier, later in pairwise(rate[110:]))
    assert rates(arm(), 1)[None] == {0: pytest.approx(3e-4)}


def test_branches_leave_a_constant_trunk_and_decay_to_their_ends() -> None:
    plan = make_plan(arm(schedule="branched"), 1000, 9)
    assert [leg[:4] for leg in plan.legs] == [
        (None, 0, 200, ()), (0.25, 200, 250, (250,)),
        (None, 200, 400, ()), (0.5, 400, 500, (500,)),
        (None, 400, 800, ()), (1.0, 800, 1000, (1000,)),
    ]  # fmt: skip
    assert [leg.spent_before for leg in plan.legs] == [0, 200, 250, 450, 550, 950]
    assert [leg.restores for leg in plan.legs] == [False, True, False, True, False, False]
    assert plan.steps_spent == 1150
    by_branch = rates(arm(schedule="branched"), 1000)
    assert sorted(by_branch[None]) == list(range(800))
    assert all(by_branch[None][step] == 3e-4 for step in range(plan.warmup, 800))
    for share in (0.25, 0.5, 1.0):
        decay = list(by_branch[share].values())
        assert decay[-1] == pytest.approx(1e-5)
        assert 3e-4 > decay[0] > decay[1]
        half = len(decay) // 2
        assert decay[half - 1] == pytest.approx(1e-5 + 2.9e-4 * (1 - 0.5**0.5))


def test_a_plan_knows_what_was_done_by_any_moment() -> None:
    plan = make_plan(arm(schedule="branched"), 1000, 9)
    assert [plan.measured_before(spent) for spent in (249, 250, 549, 550, 1150)] == [
        [], [250], [250], [250, 500], [250, 500, 1000],
    ]  # fmt: skip
    assert next(plan.legs_after(199)).start == 0
    assert next(plan.legs_after(200)).branch == 0.25
    assert next(plan.legs_after(250))[:3] == (None, 200, 400)
    assert not list(plan.legs_after(1150))


@pytest.mark.parametrize("steps", range(3, 60))
@pytest.mark.parametrize("decay_fraction", [0.01, 0.2, 0.5, 1.0])
def test_every_budget_is_covered_once_by_trunk_and_last_branch(steps: int, decay_fraction: float) -> None:
    by_branch = rates(arm(schedule="branched", decay_fraction=decay_fraction), steps)
    assert sorted([*by_branch.get(None, {}), *by_branch[1.0]]) == list(range(steps))
    assert all(rate <= 3e-4 for branch in by_branch.values() for rate in branch.values())


def test_too_few_steps_for_the_branches_are_refused_before_training(tmp_path: Path) -> None:
    tiny = load_preset(TINY)
    few = replace(tiny.arms[0], training=Training(batch_size=4, schedule="branched"), budget=Budget(tokens=128))
    with pytest.raises(ValueError, match=r"arm 'mqar-softmax': branches = .* do not end at different steps .* are 1"):
        run_experiment(replace(tiny, arms=(tiny.arms[1], few)), tmp_path, device="cpu")
    assert not list(tmp_path.iterdir())


def test_snapshots_are_log_spaced_and_end_with_the_budget() -> None:
    arm = load_preset(TINY).arms[0]
    steps = snapshot_steps(arm, 1280, 9)
    assert steps[0] == 10
    assert steps[-1] == 1280
    assert len(steps) == 9
    assert snapshot_steps(arm, 1, 9) == [1]
    assert snapshot_steps(arm, 7, 1) == [7]


BRANCHED = f"""
from dataclasses import replace
from icl_eval.presets import load_preset

def experiment():
    tiny = load_preset({TINY!r})
    training = replace(tiny.arms[1].training, schedule="branched", decay_fraction=0.5, warmup_tokens=0)
    return replace(tiny, arms=(replace(tiny.arms[1], training=training),))
"""


@pytest.fixture(scope="module")
def preset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("preset") / "branched.py"
    file.write_text(BRANCHED)
    return file


@pytest.fixture(scope="module")
def branched(preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    process = start(preset, out)
    process.join()
    assert process.exitcode == 0
    return next(out.iterdir())


def test_branch_ends_are_what_separate_runs_would_have_reached(branched: Path, preset: Path, tmp_path: Path) -> None:
    """A run whose only branch is the whole of a smaller budget shares nothing with the trunk but its mathematics."""
    (run,) = load_runs(branched)
    assert run.positions is not None
    experiment = load_preset(str(preset))
    (one,) = experiment.arms
    steps = run.config["schedule"]["steps"]
    assert run.positions.step.tolist() == [round(steps / 4), round(steps / 2), steps]
    for k, end in enumerate(run.positions.step.tolist()):
        training, budget = replace(one.training, branches=(1.0,)), Budget(flops=end * one.flops_per_step)
        alone = replace(experiment, arms=(replace(one, training=training, budget=budget),))
        (single,) = load_runs(run_experiment(alone, tmp_path / str(k), device="cpu"))
        assert single.positions is not None
        for name in ("step", "tokens", "flops", "nll_sum", "correct", "document_nll_sum"):
            np.testing.assert_array_equal(getattr(run.positions, name)[k], getattr(single.positions, name)[0])


def test_what_branches_cost_is_told_apart_from_what_a_model_has_seen(branched: Path, preset: Path) -> None:
    (run,) = load_runs(branched)
    assert run.positions is not None
    steps, spent, rows = run.config["schedule"]["steps"], run.config["spent"], run.metrics
    decays = [end - (end - int(np.ceil(end / 2))) for end in run.positions.step[:-1]]
    assert spent["steps"] == steps + sum(decays) == run.status["steps_spent"] == rows["steps_spent"].iloc[-1]
    assert spent["flops"] == pytest.approx(spent["steps"] * run.arm.flops_per_step)
    assert run.status["step"] == steps
    assert rows["branch"].dropna().unique().tolist() == [0.25, 0.5, 1.0]
    assert rows["steps_spent"].is_monotonic_increasing
    assert (
        0 < run.positions.seconds[0] < run.positions.seconds[1] < run.positions.seconds[2] < run.status["seconds_spent"]
    )
    assert run.status["seconds"] == run.positions.seconds[-1]
    table = plan_table(load_preset(str(preset)))
    (column,) = (column for column in table.columns if column.header == "steps")
    assert list(column.cells) == [f"{steps} + {sum(decays)}"]


def test_kill_9_on_trunk_and_branch_then_the_same_numbers(branched: Path, preset: Path, tmp_path: Path) -> None:
    plan = make_plan(load_preset(str(preset)).arms[0], load_runs(branched)[0].config["schedule"]["steps"], 9)
    first_branch, trunk, second_branch = plan.legs[1:4]
    moments = [
        first_branch.spent_before + 2,
        trunk.spent_before + 1,
        second_branch.spent_before + 3,
        plan.steps_spent,
    ]
    for moment in moments:
        process = start(preset, tmp_path, kill_at=moment)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        (checkpoints,) = tmp_path.rglob("checkpoint")
        assert f"step-{moment - 1:09d}" in {path.name for path in checkpoints.iterdir()}
    process = start(preset, tmp_path)
    process.join()
    assert process.exitcode == 0
    assert_identical(branched, next(tmp_path.iterdir()))


def test_a_branch_whose_trunk_is_lost_is_not_resumed(branched: Path, preset: Path, tmp_path: Path) -> None:
    plan = make_plan(load_preset(str(preset)).arms[0], load_runs(branched)[0].config["schedule"]["steps"], 9)
    fork = plan.legs[3].spent_before
    process = start(preset, tmp_path, kill_at=fork + 3)
    process.join()
    (checkpoints,) = tmp_path.rglob("checkpoint")
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"step-{fork + n:09d}" for n in (0, 1, 2)]
    torn = checkpoints / f"step-{fork:09d}" / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.warns(UserWarning, match=f"step-{fork + 2:09d} cannot be used .model.safetensors is not what was"):
        again = run_experiment(load_preset(str(preset)), tmp_path, device="cpu")
    (one,), (two,) = load_runs(branched), load_runs(again)
    assert one.positions is not None
    assert two.positions is not None
    np.testing.assert_array_equal(one.positions.nll_sum, two.positions.nll_sum)
