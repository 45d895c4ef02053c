"""Training that starts on short pieces: what a step sees, what it costs, and where the budget's shares end."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from icl_eval import Arm, Budget, Training, load_runs
from icl_eval.models import Softmax
from icl_eval.presets import load_preset
from icl_eval.run import make_accelerator, run_experiment
from icl_eval.schedule import make_plan, snapshot_steps
from icl_eval.step import StepResult, prepare, rows_of, train_step
from icl_eval.tasks import Regression

TINY = load_preset(str(Path(__file__).parent / "tiny.py"))
TEXT = TINY.arms[2]
START = {"start_context": 12, "start_tokens": 5 * TEXT.tokens_per_step - 1}


def short_start(**training: object) -> Arm:
    """Softmax on text, whose steps cost less on short pieces."""
    model = replace(TEXT.model, mixers=(Softmax(width=16, num_heads=2),))
    return replace(TEXT, model=model, training=replace(TEXT.training, schedule="branched", **(START | training)))


def test_a_cut_batch_holds_the_same_numbers_in_order() -> None:
    batch = Regression(dim=2, seq_len=12).build(0).batch("train", 0, 3)
    cut = batch.cut(4)
    assert cut.document.tolist() == [d for d in batch.document.tolist() for _ in range(3)]
    for name in ("tokens", "targets", "scored", "position", "inputs"):
        whole, pieces = getattr(batch, name), getattr(cut, name)
        assert pieces.shape[:2] == (9, 4)
        assert torch.equal(pieces[5], whole[1, 8:])
        assert torch.equal(pieces.reshape(whole.shape), whole)
        assert torch.equal(getattr(batch.cut(4, 2), name), pieces[:2])
    assert batch.cut(4, 2).document.tolist() == cut.document.tolist()[:2]


@pytest.mark.parametrize("micro_batch_size", [None, 1, 3])
def test_a_step_on_pieces_is_one_on_sequences_of_their_length(micro_batch_size: int | None) -> None:
    arm = short_start(micro_batch_size=micro_batch_size)
    accelerator = make_accelerator("cpu")
    batch = arm.task.build(0).batch("train", 0, arm.training.batch_size).cut(12)
    model, optimizer = prepare(arm, 0, accelerator)
    with torch.no_grad():
        alone = [
            model(tokens[None], targets[None])[0] for tokens, targets in zip(batch.tokens, batch.targets, strict=True)
        ]
    loss = train_step(model, optimizer, rows_of(batch, accelerator), arm, accelerator).loss
    assert loss.item() == pytest.approx(torch.cat(alone)[batch.scored].mean().item(), rel=1e-5)


def test_flops_are_counted_at_the_context_of_each_step() -> None:
    arm = short_start()
    whole = replace(arm, training=replace(arm.training, start_context=None, start_tokens=0))
    pieces = replace(whole, task=replace(whole.task, seq_len=12), training=replace(whole.training, batch_size=16))
    assert arm.start_steps == 5
    assert arm.tokens_per_step == pieces.tokens_per_step
    assert pieces.flops_per_step < arm.flops_per_step == whole.flops_per_step
    assert arm.flops_after(3) == 3 * pieces.flops_per_step
    assert arm.flops_after(7) == 5 * pieces.flops_per_step + 2 * arm.flops_per_step
    assert whole.flops_after(7) == 7 * whole.flops_per_step
    square = {length: arm.model.flops_per_token(length, causal=False).total for length in (12, arm.task.seq_len)}
    tokens = arm.tokens_per_step
    assert arm.flops_after(7, causal=False) == 3 * (5 * square[12] + 2 * square[arm.task.seq_len]) * tokens
    schedule = arm.schedule()
    assert schedule.flops == arm.flops_after(schedule.steps)
    assert abs(schedule.flops - 1.5e8) <= arm.flops_per_step / 2
    assert schedule.mismatch == pytest.approx(schedule.flops / 1.5e8 - 1)
    assert schedule.steps > whole.schedule().steps
    assert schedule.tokens == schedule.steps * arm.tokens_per_step
    by_tokens = replace(arm, budget=Budget(tokens=20 * arm.tokens_per_step)).schedule()
    assert (by_tokens.steps, by_tokens.flops) == (20, arm.flops_after(20))


def test_smaller_updates_at_the_start_are_counted_as_they_are() -> None:
    arm, whole = short_start(start_batch_size=3), short_start()
    assert (arm.start_tokens_per_step, whole.start_tokens_per_step) == (36, TEXT.tokens_per_step)
    assert arm.start_steps == -(-arm.training.start_tokens // 36)
    assert arm.tokens_after(4) == 4 * 36
    assert arm.tokens_after(arm.start_steps + 2) == arm.start_steps * 36 + 2 * TEXT.tokens_per_step
    assert arm.flops_after(4) == pytest.approx(whole.flops_after(1) * 4 * 36 / TEXT.tokens_per_step)
    asked = 20 * TEXT.tokens_per_step
    for budget in (Budget(flops=1.5e8), Budget(tokens=asked)):
        limited = replace(arm, budget=budget)
        schedule = limited.schedule()
        assert (schedule.tokens, schedule.flops) == (arm.tokens_after(schedule.steps), arm.flops_after(schedule.steps))
        assert abs(getattr(schedule, budget.unit) - budget.asked) <= getattr(arm, f"{budget.unit}_per_step") / 2


def test_decays_and_warm_ups_are_counted_in_tokens() -> None:
    """A fifth of the steps of a run with many small ones at its start would be more than a fifth of its training."""
    arm = short_start(start_tokens=2 * TEXT.tokens_per_step, start_batch_size=3, warmup_tokens=2 * 36)
    steps = arm.schedule().steps
    plan = make_plan(arm, steps, 1)
    assert plan.warmup == 2
    for leg in plan.legs:
        if leg.branch is not None:
            decayed = arm.tokens_after(leg.stop) - arm.tokens_after(leg.start)
            share = decayed / arm.tokens_after(leg.stop)
            assert 0.2 <= share < 0.2 + TEXT.tokens_per_step / arm.tokens_after(leg.stop)
    late = replace(arm, training=replace(arm.training, warmup_tokens=arm.tokens_after(arm.start_steps + 2)))
    assert make_plan(late, 10 * (arm.start_steps + 2), 1).warmup == arm.start_steps + 2


@pytest.mark.parametrize("start_batch_size", [None, 3])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_shares_of_a_budget_are_shares_of_what_it_counts(share: float, start_batch_size: int | None) -> None:
    arm = short_start(start_batch_size=start_batch_size)
    steps = arm.schedule().steps
    at = arm.steps_at(share, steps)
    assert abs(arm.flops_after(at) - share * arm.flops_after(steps)) <= arm.flops_per_step / 2
    by_tokens = replace(arm, budget=Budget(tokens=1e6))
    at = by_tokens.steps_at(share, 1000)
    assert abs(by_tokens.tokens_after(at) - share * by_tokens.tokens_after(1000)) <= arm.tokens_per_step / 2


@pytest.mark.parametrize("start_batch_size", [None, 3])
def test_a_run_records_what_it_spent_at_each_end(tmp_path: Path, start_batch_size: int | None) -> None:
    arm = short_start(start_tokens=2 * TEXT.tokens_per_step, start_batch_size=start_batch_size)
    experiment = replace(TINY, arms=(arm,), eval_sequences=8)
    (run,) = load_runs(run_experiment(experiment, tmp_path, device="cpu"))
    assert run.positions is not None
    steps = run.config["schedule"]["steps"]
    assert run.positions.flops.tolist() == [arm.flops_after(int(step)) for step in run.positions.step]
    np.testing.assert_allclose(run.positions.flops / run.positions.flops[-1], [0.25, 0.5, 1.0], atol=0.03)
    legs = make_plan(arm, steps, 1).legs
    spent = [sum(arm.flops_after(s + 1) - arm.flops_after(s) for s in range(leg.start, leg.stop)) for leg in legs]
    assert run.config["spent"]["flops"] == pytest.approx(sum(spent))
    assert run.positions.tokens.tolist() == [arm.tokens_after(int(step)) for step in run.positions.step]
    assert run.config["spent"]["tokens"] == sum(arm.tokens_after(s.stop) - arm.tokens_after(s.start) for s in legs)
    assert run.metrics["loss"].iloc[-1] < run.metrics["loss"].iloc[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Training(start_context=8), "Training.start_tokens = 0: must be positive with a start_context"),
        (lambda: Training(start_tokens=8), "Training.start_tokens = 8: must be positive .* 0 without"),
        (lambda: Training(start_context=0), "Training.start_context = 0: must be None or at least 1"),
        (lambda: Training(start_batch_size=8), "Training.start_batch_size = 8: must be None, or .* start_context"),
        (lambda: short_start(start_batch_size=0), "Training.start_batch_size = 0: must be None, or at least 1"),
        (lambda: short_start(start_batch_size=99), "start_batch_size = 99: a batch has only 16 pieces"),
        (lambda: short_start(start_context=7), "start_context = 7: it must divide seq_len = 48"),
        (lambda: replace(short_start(), budget=Budget(seconds=9.0)), "start_context = 12: a budget in seconds"),
        (
            lambda: replace(TINY.arms[0], training=replace(TEXT.training, start_context=8, start_tokens=8)),
            "start_context = 8: a cut takes from the task 'mqar' what its answers lie in",
        ),
        (
            lambda: replace(short_start(), budget=Budget(tokens=100)).schedule(),
            "100 tokens is smaller than the start and one step",
        ),
        (
            lambda: make_plan(short_start(start_tokens=4 * TEXT.tokens_per_step), 12, 1),
            "the branch at 0.25 of the budget begins at step .*, before sequences of full length are seen",
        ),
    ],
)
def test_a_start_that_cannot_be_is_refused(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=re.compile(message)):
        make()


def test_points_of_a_cosine_are_spaced_in_flops() -> None:
    arm = replace(short_start(start_tokens=40 * TEXT.tokens_per_step), budget=Budget(flops=1e10))
    steps = arm.schedule().steps
    flops = np.array([arm.flops_after(step) for step in snapshot_steps(arm, steps, 8)])
    assert flops[-1] == arm.flops_after(steps)
    np.testing.assert_allclose(flops[1:] / flops[:-1], 2, rtol=0.1)


def test_every_length_is_met_before_time_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever compiles or checks itself at its first meeting with a shape does so before the first step."""
    met: list[int | str] = []
    monkeypatch.setattr("icl_eval.train.warm_up", lambda model, rows, *rest: met.append(rows.scored.shape[1]))

    def step(*arguments: Any) -> StepResult:
        met.append("step")
        return train_step(*arguments)

    monkeypatch.setattr("icl_eval.step_graphs.train_step", step)
    run_experiment(replace(TINY, arms=(short_start(start_tokens=1),)), tmp_path, device="cpu")
    assert met[:3] == [START["start_context"], TEXT.task.seq_len, "step"]
    assert set(met[3:]) == {"step"}


@pytest.mark.slow
def test_compiled_runs_end_where_eager_ones_do(tmp_path: Path) -> None:
    """Through short pieces, whole sequences, branches and measurements; needs a C++ compiler."""
    arm = short_start(start_tokens=TEXT.tokens_per_step)
    ends = []
    for compiled in (False, True):
        training = replace(arm.training, compile=compiled)
        model = replace(arm.model, num_layers=2)
        experiment = replace(TINY, arms=(replace(arm, training=training, model=model),))
        (run,) = load_runs(run_experiment(experiment, tmp_path / str(compiled), device="cpu"))
        assert run.positions is not None
        ends.append(run.positions.nll_sum.sum(axis=1) / run.positions.count.sum())
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-3)
    assert len(ends[0]) == 3
