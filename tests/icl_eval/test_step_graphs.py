"""Steps that are recorded once and replayed: the numbers of steps taken one by one, whatever changes between them."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from icl_eval import Arm
from icl_eval.models import MixerConfig, Power, Window
from icl_eval.presets import load_preset
from icl_eval.run import make_accelerator, run_experiment
from icl_eval.run_folder import load_runs
from icl_eval.step import StepResult, prepare, rows_of, warm_up
from icl_eval.step_graphs import StepGraphs, recordable
from icl_eval.tasks import MQAR, Batch, Regression

TINY = load_preset(str(Path(__file__).parent / "tiny.py"))
BRANCHED = replace(
    TINY,
    arms=tuple(
        replace(arm, training=replace(arm.training, schedule="branched", branches=(0.5, 1.0))) for arm in TINY.arms[:1]
    ),
)
NUMBERS = Regression(dim=2, seq_len=32)
REGRESSION = replace(
    TINY.arms[0],
    name="regression",
    task=NUMBERS,
    model=replace(TINY.arms[0].model, vocab_size=NUMBERS.num_tokens, input_dim=NUMBERS.input_dim, loss="squared_error"),
)
RATES = (2**-11, 2**-10, 2**-9, 2**-11, 2**-10, 2**-12)
"""The same in float32, in which rates are read from a device; so small that steps do not multiply differences of
rounding, which other kernels make in a graph."""


def batches(arm: Arm) -> list[Batch]:
    """Sequences and pieces of them, in turns, of which unequally many positions are scored."""
    source, made = arm.task.build(0), []
    for index in range(len(RATES)):
        batch = source.batch("train", index, 4)
        batch.scored[:, : arm.task.seq_len * index // len(RATES)] = False
        made.append(batch if index % 2 else batch.cut(arm.task.seq_len // 2))
    assert len({int(batch.scored.sum()) for batch in made}) > 2
    return made


def steps(arm: Arm, accelerator: Accelerator) -> StepGraphs:
    model, optimizer = prepare(arm, 0, accelerator)
    for batch in batches(arm)[:2]:
        warm_up(model, rows_of(batch, accelerator), arm, accelerator)
    return StepGraphs(model, optimizer, arm, accelerator)


def trained(step: StepGraphs, arm: Arm) -> list[StepResult]:
    return [step(batch, rate) for batch, rate in zip(batches(arm), RATES, strict=True)]


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records on a CPU: what is replayed is run again, on the tensors of the record. Grows with every record."""
    records: list[int] = []

    def record(step: Callable[[], StepResult]) -> tuple[Callable[[], None], StepResult]:
        records.append(len(records))
        result = StepResult(*(torch.zeros(()) for _ in StepResult._fields))

        def replay() -> None:
            for old, new in zip(result, step(), strict=True):
                old.copy_(new)

        return replay, result

    monkeypatch.setattr("icl_eval.step_graphs.record", record)
    monkeypatch.setattr("icl_eval.step_graphs.no_waiting", nullcontext)
    return records


def assert_alike(step: StepGraphs, plain: StepGraphs, arm: Arm) -> None:
    for result, expected in zip(trained(step, arm), trained(plain, arm), strict=True):
        assert [x.item() for x in result] == pytest.approx([x.item() for x in expected], rel=1e-4)
    for (name, value), same in zip(step.model.state_dict().items(), plain.model.state_dict().values(), strict=True):
        torch.testing.assert_close(value, same, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("arm", [TINY.arms[0], TINY.arms[-1], REGRESSION], ids=lambda arm: arm.name)
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_replays_read_each_batch_and_rate(arm: Arm, micro_batch_size: int | None, recorder: list[int]) -> None:
    arm = replace(arm, training=replace(arm.training, micro_batch_size=micro_batch_size))
    step, plain = (steps(arm, make_accelerator("cpu")) for _ in range(2))
    assert not step.recording
    step.recording = True
    assert_alike(step, plain, arm)
    assert len(recorder) == 2, "one record for every shape"
    step.forget()
    trained(step, arm)
    assert len(recorder) == 4


def test_a_run_records_anew_when_it_returns_from_a_branch(
    recorder: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was recorded would go on to change the optimiser's moments of the branch."""
    ends = []
    for recording in (False, True):
        if recording:
            monkeypatch.setattr("icl_eval.step_graphs.recordable", lambda *_: True)
        (run,) = load_runs(run_experiment(BRANCHED, tmp_path / str(recording), device="cpu"))
        ends.append(run.metrics[["step", "loss", "gradient_norm"]].to_numpy())
    np.testing.assert_allclose(ends[1], ends[0], rtol=1e-4)
    assert len(recorder) == len(BRANCHED.arms[0].training.branches)


@pytest.mark.parametrize("where", ["no_waiting", "record"])
def test_a_step_that_cannot_be_recorded_is_taken_as_it_is(
    where: str, recorder: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: Callable[[], StepResult]) -> None:
        step()

    def wait(gradient: torch.Tensor) -> None:
        if step.recording and (where == "no_waiting" or step.met):
            raise RuntimeError("called a synchronizing CUDA operation\nmore")

    if where == "record":
        monkeypatch.setattr("icl_eval.step_graphs.record", fail)
    arm = TINY.arms[0]
    step, plain = (steps(arm, make_accelerator("cpu")) for _ in range(2))
    step.recording = True
    first, *_ = step.model.parameters()
    first.register_hook(wait)  # while gradients are formed, so that some are there
    with pytest.warns(
        UserWarning, match=r"'mqar-softmax' cannot be recorded as a CUDA graph: called a synch.* operation$"
    ):
        assert_alike(step, plain, arm)
    assert not step.recording
    assert not step.recorded


@pytest.mark.parametrize(
    ("options", "device", "processes", "expected"),
    [
        ({"compile": True}, "cuda", 1, True),
        ({"compile": True}, "cpu", 1, False),
        ({"compile": True}, "cuda", 2, False),
        ({"compile": False}, "cuda", 1, False),
        ({"compile": True, "activation_checkpointing": True}, "cuda", 1, False),
    ],
)
def test_what_is_recorded(options: dict, device: str, processes: int, expected: bool) -> None:
    arm = replace(TINY.arms[0], training=replace(TINY.arms[0].training, **options))
    accelerator = SimpleNamespace(num_processes=processes, device=torch.device(device))
    assert recordable(arm, cast(Accelerator, accelerator)) is expected


def long(mixer: MixerConfig) -> Arm:
    """An arm of sequences that are long enough for the kernels that keep a state."""
    task = MQAR(seq_len=4096, vocab_size=32, num_pairs=4)
    return replace(
        TINY.arms[0],
        name=f"{mixer.name}-{mixer.head_dim}",
        task=task,
        model=replace(TINY.arms[0].model, mixers=(mixer,)),
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    "arm",
    [
        *TINY.arms,
        REGRESSION,
        *map(long, (Power(width=128, num_heads=2), Power(width=64, num_heads=2), Window(width=128, window=64))),
    ],
    ids=lambda arm: arm.name,
)
@pytest.mark.parametrize("options", [{}, {"micro_batch_size": 3}], ids=str)
def test_gpu_replays_give_the_numbers_of_steps_taken_one_by_one(arm: Arm, options: dict) -> None:
    arm = replace(arm, training=replace(arm.training, compile=True, **options))
    step, plain = (steps(arm, make_accelerator("cuda")) for _ in range(2))
    plain.recording = False
    assert_alike(step, plain, arm)
    assert len(step.recorded) == 2


@pytest.mark.gpu
def test_gpu_a_loss_over_several_chunks_is_replayed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_eval.models.losses.CHUNK_TOKENS", 40)
    arm = replace(TINY.arms[0], training=replace(TINY.arms[0].training, compile=True))
    assert arm.training.batch_size * arm.task.seq_len > 40
    step, plain = (steps(arm, make_accelerator("cuda")) for _ in range(2))
    plain.recording = False
    assert_alike(step, plain, arm)
    assert len(step.recorded) == 2


@pytest.mark.gpu
def test_gpu_a_gradient_that_is_not_finite_changes_nothing_in_a_replay() -> None:
    arm = replace(TINY.arms[0], training=replace(TINY.arms[0].training, compile=True))
    step = steps(arm, make_accelerator("cuda"))
    batch = batches(arm)[1]
    factor = torch.ones((), device="cuda")
    next(step.model.parameters()).register_hook(lambda gradient: gradient * factor)
    assert [step(batch, 1e-2).skipped.item() for _ in range(3)] == [0, 0, 0]
    assert len(step.recorded) == 1
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    factor.fill_(float("inf"))
    assert step(batch, 1e-2).skipped == 1
    assert all(torch.equal(value, before[name]) for name, value in step.model.state_dict().items())
    factor.fill_(1.0)
    assert step(batch, 1e-2).skipped == 0


@pytest.mark.gpu
def test_gpu_a_model_that_waits_for_the_device_is_trained_all_the_same() -> None:
    arm = replace(TINY.arms[0], training=replace(TINY.arms[0].training, compile=True))
    step, plain = (steps(arm, make_accelerator("cuda")) for _ in range(2))
    plain.recording = False
    embedding = step.model.get_submodule("model.embedding")
    embedding.register_forward_hook(lambda module, arguments, output: print(output.sum().item()))
    with pytest.warns(UserWarning, match="cannot be recorded as a CUDA graph"):
        assert_alike(step, plain, arm)
    assert not torch.cuda.get_sync_debug_mode()


@pytest.mark.gpu
def test_gpu_a_run_with_branches_measures_and_returns_between_replays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = replace(BRANCHED.arms[0].training, compile=True)
    experiment = replace(BRANCHED, arms=(replace(BRANCHED.arms[0], training=training),))
    (recorded,) = load_runs(run_experiment(experiment, tmp_path / "recorded", device="cuda"))
    monkeypatch.setattr("icl_eval.step_graphs.recordable", lambda *_: False)
    (plain,) = load_runs(run_experiment(experiment, tmp_path / "plain", device="cuda"))
    np.testing.assert_allclose(recorded.metrics["loss"], plain.metrics["loss"], rtol=1e-3)
