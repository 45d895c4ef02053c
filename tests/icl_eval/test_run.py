"""The whole path at the smallest size: results, resumption, divergence, and accidents on disk."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn

from icl_eval import Budget, load_run, load_runs
from icl_eval.checkpoint import Progress, load_checkpoint, save_checkpoint
from icl_eval.measure import ScoredLoss, measure
from icl_eval.plots import plot_all
from icl_eval.positions import Positions
from icl_eval.presets import load_preset
from icl_eval.run import make_accelerator, run_experiment
from icl_eval.run_folder import RunFolderError, write_atomically
from icl_eval.step import prepare, rows_of, train_step
from icl_eval.train import heldout_sequences

TINY = str(Path(__file__).parent / "tiny.py")
STORED = Path(__file__).parent / "tiny_curve.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_experiment(load_preset(TINY), tmp_path_factory.mktemp("runs"), device="cpu")


def numbers(positions: Positions) -> dict[str, np.ndarray]:
    """All that two identical runs share: everything but the time they took."""
    return {f.name: getattr(positions, f.name) for f in fields(positions) if f.name != "seconds"}


def assert_identical(first: Path, second: Path) -> None:
    for one, two in zip(load_runs(first), load_runs(second), strict=True):
        assert one.name == two.name
        assert one.positions is not None
        assert two.positions is not None
        for name, array in numbers(one.positions).items():
            np.testing.assert_array_equal(array, numbers(two.positions)[name], err_msg=f"{one.name}: {name}")
        columns = ["step", "loss", "gradient_norm", "learning_rate"]
        assert one.metrics[columns].equals(two.metrics[columns])


def test_a_tiny_run_matches_the_stored_curve(folder: Path) -> None:
    """The text arm is left out: its corpus is that of the environment."""
    stored = json.loads(STORED.read_text())
    losses = {run.name: run.metrics["loss"].tolist() for run in load_runs(folder)}
    for name, curve in stored.items():
        assert losses[name] == pytest.approx(curve, rel=2e-3), name


def test_run_folders_hold_what_they_promise(folder: Path) -> None:
    runs = load_runs(folder)
    assert [run.name for run in runs] == ["mqar-softmax", "mqar-power", "text-linear"]
    for run in runs:
        assert {p.name for p in run.path.iterdir()} == {
            "config.json", "env.json", "data.json", "metrics.jsonl", "positions.npz", "checkpoint", "DONE",
        }  # fmt: skip
        assert run.status["status"] == "complete"
        assert 0 < run.status["seconds_waited"] < run.status["seconds_spent"]
        assert run.positions is not None
        assert len(run.positions.step) >= 4
        assert run.positions.step[-1] == run.config["schedule"]["steps"] == run.metrics["step"].iloc[-1]
        assert run.positions.count.sum() == run.positions.document_count.sum()
        np.testing.assert_allclose(run.positions.nll_sum.sum(1), run.positions.document_nll_sum.sum((1, 2)))
        assert run.arm == next(arm for arm in load_preset(TINY).arms if arm.name == run.name)
        assert run.env["packages"]["torch"] == torch.__version__
    assert runs[2].data["sha256"]
    assert [run.positions is not None and run.positions.document_bytes is not None for run in runs] == [0, 0, 1]
    assert [round(s) for s in runs[0].positions.flops / runs[0].positions.step] == [
        round(runs[0].arm.flops_per_step)
    ] * len(runs[0].positions.step)


def test_measured_losses_equal_a_direct_computation() -> None:
    arm = load_preset(TINY).arms[0]
    model, source = arm.model.build(3), arm.task.build(3)
    measured = measure(
        ScoredLoss(model), source, num_positions=arm.task.num_positions, num_sequences=8, batch_size=4,
        accelerator=make_accelerator("cpu"),
    )  # fmt: skip
    total = np.zeros(arm.task.num_positions)
    for index in range(2):
        tokens, targets, scored, position = source.batch("heldout", index, 4)[:4]
        logits, _ = model(tokens)
        for b, t in scored.nonzero().tolist():
            total[position[b, t]] += -logits[b, t].log_softmax(-1)[targets[b, t]].item()
    np.testing.assert_allclose(measured.nll_sum, total, rtol=1e-5)
    assert measured.documents.tolist() == list(range(8))


def test_bytes_of_scored_tokens_are_kept_by_document_and_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    arm = load_preset(TINY).arms[2]
    source = arm.task.build(0)
    sizes = np.arange(256) % 7
    monkeypatch.setattr(source, "token_bytes", lambda: sizes)
    measured = measure(
        ScoredLoss(arm.model.build(0)), source, num_positions=arm.task.num_positions, num_sequences=8, batch_size=4,
        accelerator=make_accelerator("cpu"),
    )  # fmt: skip
    assert measured.document_bytes is not None
    for index in range(2):
        batch = source.batch("heldout", index, 4)
        for document, targets in zip(batch.document.tolist(), batch.targets, strict=True):
            measured.document_bytes[measured.documents.tolist().index(document), -1] -= sizes[targets[-3:]].sum()
    assert measured.bin_edges[-2:].tolist() == [46, 49]
    assert (measured.document_bytes[:, -1] == 0).all()
    assert (measured.document_bytes[:, :-1].sum(1) > 0).all()


def test_a_second_run_reuses_the_first(folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.parent != folder}
    assert run_experiment(load_preset(TINY), folder.parent, device="cpu") == folder
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_figures_are_drawn_from_run_folders_alone(folder: Path, tmp_path: Path) -> None:
    files = plot_all(load_runs(folder), tmp_path)
    assert {file.name for file in files} == {"loss_by_position.png", "score_by_state.png", "training.png"}
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_runs_that_diverge_end_themselves_only_and_say_how(tmp_path: Path) -> None:
    tiny = load_preset(TINY)
    wild, wilder = (
        replace(tiny.arms[0], name=name, training=replace(tiny.arms[0].training, learning_rate=rate))
        for name, rate in (("wild", 1e8), ("wilder", 1e30))
    )
    root = run_experiment(replace(tiny, arms=(wild, wilder, tiny.arms[1]), snapshots=1), tmp_path, device="cpu")
    diverged, skipping, fine = load_runs(root)
    assert diverged.diverged
    assert diverged.status["reason"].startswith("training loss is nan after step")
    assert np.isnan(diverged.metrics["loss"].iloc[-1])
    assert "NaN" not in (diverged.path / "metrics.jsonl").read_text()
    assert skipping.diverged
    assert skipping.status["reason"].startswith("gradients were not finite in 19 steps, which were skipped")
    assert np.isfinite(skipping.metrics["loss"].iloc[-1])
    assert skipping.metrics["skipped_steps"].tolist() == [9, 19]
    assert not fine.diverged
    assert fine.status["skipped_steps"] == 0
    assert len(plot_all([diverged, fine], tmp_path)) == 3
    assert len(plot_all([diverged], tmp_path)) == 3


def test_a_damaged_line_of_metrics_does_not_block_resuming(folder: Path, tmp_path: Path) -> None:
    (run,) = (run for run in load_runs(folder) if run.name == "mqar-power")
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    unfinished = copy / "mqar-power" / "seed0"
    (unfinished / "DONE").unlink()
    lines = (unfinished / "metrics.jsonl").read_bytes().splitlines()
    (unfinished / "metrics.jsonl").write_bytes(b"\n".join([lines[0], b"\xff\x00{", *lines[2:]]))
    with pytest.warns(UserWarning, match="metrics.jsonl, line 2 is damaged and left out"):
        run_experiment(load_preset(TINY), tmp_path, device="cpu")
    again = load_run(unfinished)
    assert again.metrics["loss"].tolist() == run.metrics["loss"].drop(1).tolist()
    (unfinished / "metrics.jsonl").write_bytes(b"\n".join([b"7", *lines[1:]]))
    with pytest.raises(RunFolderError, match=r"metrics.jsonl, line 1 is damaged: it is not a row"):
        _ = load_run(unfinished).metrics


def test_a_checkpoint_before_the_first_step_leads_back_to_it(tmp_path: Path) -> None:
    """A branch may decay from the start. Asked for its state, a fresh optimiser takes a step without gradient."""
    arm, accelerator = load_preset(TINY).arms[0], make_accelerator("cpu")
    source = arm.task.build(0)
    rows = [rows_of(source.batch("train", index, 4), accelerator) for index in range(3)]

    def losses(model: nn.Module, optimizer: AcceleratedOptimizer) -> list[float]:
        return [train_step(model, optimizer, each, arm, accelerator).loss.item() for each in rows]

    expected = losses(*prepare(arm, 0, accelerator))
    model, optimizer = prepare(arm, 0, accelerator)
    save_checkpoint(tmp_path, model, optimizer.optimizer, accelerator, Progress())
    assert losses(model, optimizer) == expected
    load_checkpoint(tmp_path, model, optimizer.optimizer, accelerator)
    assert losses(model, optimizer) == expected


def test_damaged_checkpoints_are_named_and_the_one_before_is_used(tmp_path: Path) -> None:
    accelerator = make_accelerator("cpu")
    model = torch.nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    weights, drawn = [], []
    for step in (1, 2, 3):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        weights.append(model.weight.detach().clone())
        save_checkpoint(tmp_path, model, optimizer, accelerator, Progress(step=step, steps_spent=step))
        drawn.append(torch.rand(3))
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000002", "step-000000003"]
    torn = tmp_path / "step-000000003" / "optimizer.safetensors"
    torn.write_bytes(torn.read_bytes()[:-4])
    with pytest.warns(
        UserWarning, match=r"step-000000003 cannot be used \(optimizer.safetensors is not what was written"
    ):
        assert load_checkpoint(tmp_path, model, optimizer, accelerator) == Progress(step=2, steps_spent=2)
    assert torch.equal(model.weight, weights[1])
    assert torch.equal(torch.rand(3), drawn[1])
    other = torch.nn.Linear(4, 4)
    before = other.weight.detach().clone()
    with pytest.warns(UserWarning, match="it belongs to another model|is not what was written"):
        assert load_checkpoint(tmp_path, other, torch.optim.AdamW(other.parameters()), accelerator) == Progress()
    assert torch.equal(other.weight, before)


def test_a_full_disk_leaves_the_old_file_and_a_clear_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "positions.npz"
    write_atomically(file, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match=r"cannot write .*positions.npz: No space left on device"):
        write_atomically(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids="umask {:03o}".format)
def test_files_have_the_permissions_that_the_user_asks_for(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "new", "whole")
        write_atomically(tmp_path / "new", "replaced")
        (tmp_path / "plain").write_text("")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "plain")]
    assert modes == [0o666 & ~umask] * 2


def test_an_output_path_that_is_a_file_is_refused_before_training(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        run_experiment(load_preset(TINY), blocked, device="cpu")


def test_unfinished_and_foreign_folders_are_not_results(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="is not a run folder"):
        load_run(tmp_path)
    with pytest.raises(RunFolderError, match="holds no finished run"):
        load_runs(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RunFolderError, match="unfinished: run the same command again"):
        load_run(tmp_path)


def test_a_budget_in_seconds_becomes_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_preset(TINY)
    timed = replace(tiny, arms=(replace(tiny.arms[0], budget=Budget(seconds=0.2)),))
    with pytest.raises(ValueError, match=r"arm 'mqar-softmax': a budget of 0.2 seconds becomes steps only"):
        timed.arms[0].schedule()
    (run,) = load_runs(run_experiment(timed, tmp_path, device="cpu"))
    assert run.config["schedule"]["steps"] == run.status["step"] > 1
    (run.path / "DONE").unlink()
    monkeypatch.setattr("icl_eval.run.calibrate", lambda *_: pytest.fail("calibrated again"))
    (again,) = load_runs(run_experiment(timed, tmp_path, device="cpu"))
    assert again.config["schedule"] == run.config["schedule"]


def test_devices_are_checked() -> None:
    with pytest.raises(ValueError, match="device = 'gpu': must be 'auto', 'cpu' or 'cuda'"):
        make_accelerator("gpu")


def test_fewer_heldout_sequences_than_asked_is_said() -> None:
    tiny = load_preset(TINY)
    text = replace(tiny, arms=tiny.arms[2:], eval_sequences=10_000_000)
    with pytest.warns(UserWarning, match="eval_sequences = 10000000, but only .* held-out sequences exist"):
        assert heldout_sequences(text, text.arms[0].task.build(0)) < 10_000_000


def test_a_tracker_gets_what_metrics_hold(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tiny = load_preset(TINY)
    root = run_experiment(replace(tiny, arms=tiny.arms[:2]), tmp_path, device="cpu", tracker="tensorboard")
    for run in load_runs(root):
        (file,) = (root / "tracking" / f"{run.name}-seed0").rglob("events.*")
        logged = events.EventAccumulator(str(file.parent)).Reload()
        assert [scalar.step for scalar in logged.Scalars("loss")] == run.metrics["step"].tolist()
        assert [scalar.value for scalar in logged.Scalars("loss")] == pytest.approx(run.metrics["loss"].tolist())
        assert run.positions is not None
        assert [scalar.step for scalar in logged.Scalars("heldout_loss")] == run.positions.step.tolist()


def test_trackers_are_checked() -> None:
    with pytest.raises(ValueError, match="unknown tracker 'tensorbord'; did you mean 'tensorboard'"):
        make_accelerator("cpu", tracker="tensorbord")
    with pytest.raises(ValueError, match=r"the tracker 'comet_ml' is not installed: pip install comet_ml"):
        make_accelerator("cpu", tracker="comet_ml")


def test_a_published_copy_says_what_the_runs_say(folder: Path, tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "publish.py"
    subprocess.run([sys.executable, str(script), str(folder), "--out", str(tmp_path / "copy")], check=True)
    runs, copies = load_runs(folder), load_runs(tmp_path / "copy")
    assert [(copy.name, copy.seed, copy.status, copy.config) for copy in copies] == [
        (run.name, run.seed, run.status, run.config) for run in runs
    ]
    assert not list((tmp_path / "copy").rglob("checkpoint"))
    for run, copy in zip(runs, copies, strict=True):
        assert run.positions is not None
        assert copy.positions is not None
        assert copy.metrics.equals(run.metrics)
        for name in ("document_nll_sum", "document_correct", "document_count", "flops", "seconds"):
            np.testing.assert_array_equal(getattr(copy.positions, name), getattr(run.positions, name))
        np.testing.assert_allclose(copy.positions.nll_sum, run.positions.nll_sum, rtol=1e-6)


def test_a_published_copy_does_not_say_where_documents_lay(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "runs")
    files = [tmp_path / "runs" / "experiment.json", *(tmp_path / "runs").rglob("config.json")]
    for file in files:
        file.write_text(file.read_text().replace('"class": "SourceCode"', '"path": "/home/me/texts"'))
    script = Path(__file__).parents[2] / "benchmarks" / "publish.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "runs"), "--out", str(tmp_path / "copy")], check=True)
    said = "".join(file.read_text() for file in (tmp_path / "copy").rglob("*.json"))
    assert said.count('"path": "texts"') == 2
    assert "/home" not in said
