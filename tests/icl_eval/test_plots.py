"""The frontier figure: what stands on its axes, read back from the figure."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.axes import Axes

from icl_eval import Arm, Budget, Experiment, Training, comparison, load_run, load_runs
from icl_eval.commands.compare import compare
from icl_eval.groups import group_runs
from icl_eval.models import RWKV, ModelConfig, Softmax, Transformer, Window
from icl_eval.paper_plots import plot_differences, plot_end_points
from icl_eval.plots import plot_loss_by_position, plot_score_by_state, plot_training
from icl_eval.presets import load_preset
from icl_eval.run import run_experiment
from icl_eval.run_folder import Run, RunFolder
from icl_eval.statistics import overall
from icl_eval.studies import studies
from icl_eval.tables import sharing
from icl_eval.tasks import MQAR, Markov, RegBench, Regression, Task
from tests.icl_eval.synthetic import few_resamples, write_study  # noqa: F401
from tests.icl_eval.test_claims import WORLDS

TASKS: dict[str, Task] = {
    "mqar": MQAR(seq_len=32, vocab_size=16, num_pairs=4),
    "rewritten": MQAR(seq_len=32, vocab_size=16, num_pairs=3, num_rewrites=2),
    "markov": Markov(seq_len=32, num_states=3),
    "regbench": RegBench(seq_len=32),
    "regression": Regression(dim=2, seq_len=32),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    geometry = {"width": 8, "num_heads": 2}
    mixers = {
        "softmax": Softmax(**geometry),
        "w16": Window(**geometry, window=16),
        "w4": Window(**geometry, window=4),
    }
    arms = tuple(
        Arm(
            name=f"{kind}-{name}",
            task=task,
            model=ModelConfig(
                vocab_size=task.num_tokens, num_layers=1, mixers=(mixer,), input_dim=task.input_dim, loss=task.loss
            ),
            training=Training(batch_size=4),
            budget=Budget(tokens=512),
        )
        for kind, task in TASKS.items()
        for name, mixer in mixers.items()
    )
    experiment = Experiment(name="frontier", question="?", arms=arms, eval_sequences=16, eval_batch_size=8, snapshots=1)
    return load_runs(run_experiment(experiment, tmp_path_factory.mktemp("runs"), device="cpu"))


@pytest.fixture
def panels(runs: list[Run]) -> Iterator[dict[str, Axes]]:
    figure = plot_score_by_state(runs)
    yield dict(zip(TASKS, figure.axes, strict=True))
    plt.close(figure)


def test_a_family_is_one_line_over_bytes_with_intervals(panels: dict[str, Axes], runs: list[Run]) -> None:
    ax = panels["mqar"]
    assert [container.get_label() for container in ax.containers] == ["softmax", "window"]
    line = ax.containers[1].lines[0]
    # Keys and values of 8 channels, 4 bytes each; windows stand in order of their bytes.
    np.testing.assert_array_equal(line.get_xdata(), [2 * 8 * 4 * 4, 2 * 8 * 16 * 4])
    positions = [next(r for r in runs if r.name == f"mqar-{name}").positions for name in ("w4", "w16")]
    expected = [overall([p], "accuracy") for p in positions]  # type: ignore[list-item]
    np.testing.assert_allclose(line.get_ydata(), [e.value for e in expected])
    bars = [segment[:, 1] for segment in ax.containers[1].lines[2][0].get_segments()]
    np.testing.assert_allclose(bars, [[e.low, e.high] for e in expected])
    assert ax.get_xscale() == "log"


def test_no_line_joins_two_backbones(tmp_path: Path) -> None:
    task = TASKS["mqar"]
    arms = tuple(
        Arm(
            name=f"{name}-{mixer.label}",
            task=task,
            model=ModelConfig(vocab_size=task.num_tokens, num_layers=1, mixers=(mixer,), backbone=backbone),
            training=Training(batch_size=4),
            budget=Budget(tokens=512),
        )
        for name, backbone in {"a": Transformer(), "b": RWKV()}.items()
        for mixer in (Softmax(width=8, num_heads=2), Window(width=8, num_heads=2, window=4))
    )
    experiment = Experiment(name="two", question="?", arms=arms, eval_sequences=16, eval_batch_size=8, snapshots=1)
    figure = plot_score_by_state(load_runs(run_experiment(experiment, tmp_path, device="cpu")))
    labels = [container.get_label() for container in figure.axes[0].containers]
    assert labels == ["transformer softmax", "transformer window", "rwkv softmax", "rwkv window"]
    lines = [container.lines[0] for container in figure.axes[0].containers]
    assert all(len(line.get_xdata()) == 1 for line in lines)
    assert len({(line.get_marker(), line.get_markerfacecolor()) for line in lines}) == 4
    plt.close(figure)


def test_each_task_is_scored_in_its_own_way(panels: dict[str, Axes], runs: list[Run]) -> None:
    labels = {kind: ax.get_ylabel() for kind, ax in panels.items()}
    assert labels["mqar"] == labels["rewritten"] == "held-out accuracy"
    assert labels["markov"] == labels["regbench"] == "held-out loss (nats per scored token)"
    assert labels["regression"] == "held-out loss (squared error per scored token)"
    (best,) = [line for line in panels["markov"].lines if line.get_label() == "best possible"]
    assert best.get_ydata()[0] == pytest.approx(TASKS["markov"].optimum(np.arange(1, 33)).mean())  # type: ignore[union-attr]


def test_namesakes_are_told_apart_by_their_fields(panels: dict[str, Axes]) -> None:
    assert panels["markov"].get_title() == "markov, context 32"
    assert panels["mqar"].get_title() == "mqar, context 32, num_pairs 4, num_rewrites 0"
    assert panels["rewritten"].get_title() == "mqar, context 32, num_pairs 3, num_rewrites 2"


def test_anchors_are_drawn_with_the_optimum(runs: list[Run]) -> None:
    figure = plot_loss_by_position([run for run in runs if run.name.startswith("regbench")])
    names = {line.get_label() for line in figure.axes[0].lines}
    assert {"best possible", "chance", "1-gram", "2-gram", "3-gram", "5-gram"} <= names
    plt.close(figure)


@pytest.fixture(scope="module")
def axes_of_growth(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Three arms of power attention at one context, a fourth at a longer one."""
    return load_runs(write_study(tmp_path_factory.mktemp("fig8"), load_preset("fig8_axes", "h200"), WORLDS["C11"][0]))


def test_a_task_at_two_contexts_has_one_scale(axes_of_growth: list[Run]) -> None:
    for figure in (plot_loss_by_position(axes_of_growth), plot_training(axes_of_growth)):
        short, long = figure.axes[:2]
        assert short.get_ylim() == long.get_ylim()
        assert short.get_legend_handles_labels()[1] == ["base", "batch", "parameters"]
        assert long.get_legend_handles_labels()[1] == ["context"]
        plt.close(figure)


def test_no_line_joins_arms_that_differ_in_more_than_their_state(axes_of_growth: list[Run]) -> None:
    figure = plot_score_by_state(axes_of_growth)
    assert [container.get_label() for container in figure.axes[0].containers] == ["base", "batch", "parameters"]
    plt.close(figure)


def test_few_arms_of_a_study_share_a_row_whatever_their_context(axes_of_growth: list[Run]) -> None:
    (study,) = studies(axes_of_growth)
    figure = plot_end_points(study)
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title() == "SourceCode abababab"
    assert figure.axes[2].get_legend_handles_labels()[1] == ["base", "batch", "parameters", "context"]
    assert len({(line.get_linestyle(), line.get_fillstyle()) for line in figure.axes[2].lines}) == 4
    plt.close(figure)


def test_differences_hold_for_all_positions_at_once_and_show_zero(tmp_path: Path) -> None:
    root = write_study(tmp_path, load_preset("fig9_long_context", "h200"), WORLDS["C12"][0])
    (study,) = studies(load_runs(root))
    arms = {arm.name: arm.positions for arm in study.paired}
    expected = comparison.compare(arms, pairs=[("linear", "power"), ("softmax", "power")])
    figure = plot_differences(study)
    (ax,) = figure.axes
    for line, band, difference in zip(ax.lines, ax.collections, expected, strict=False):
        assert line.get_label() == f"{difference.first} - {difference.second}"
        assert (difference.curve.estimate.value > 0).all()
        np.testing.assert_array_equal(line.get_ydata(), difference.curve.estimate.value)
        heights = band.get_paths()[0].vertices[:, 1]
        assert heights.min() == difference.curve.estimate.low.min()
        assert heights.max() == difference.curve.estimate.high.max()
    assert ax.get_ylim()[0] < 0 < ax.get_ylim()[1]
    plt.close(figure)


def test_pairs_stay_within_a_backbone_unless_a_baseline_is_named(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    root = write_study(tmp_path, load_preset("fig1_state_helps", "h200"), WORLDS["C1"][0], seeds=(0,))
    compared = []
    for baseline in (None, "rwkv-linear-32"):
        compare([root], baseline=baseline)
        first, second = capsys.readouterr().out.split("context 32,")[1].splitlines()[1:3]
        compared.append(list(zip(first.split(), re.findall(r"- (\S+)", second), strict=True)))
    assert compared == [
        [(f"{backbone}-softmax-32", f"{backbone}-linear-32") for backbone in ("rwkv", "transformer")],
        [(arm, "rwkv-linear-32") for arm in ("rwkv-softmax-32", "transformer-softmax-32", "transformer-linear-32")],
    ]


def test_distances_that_hardly_any_document_has_are_not_drawn(runs: list[Run]) -> None:
    run = next(run for run in runs if run.name == "markov-softmax")
    assert run.positions is not None
    count, bins = run.positions.document_count.copy(), run.positions.document_count.shape[1]
    count[1:, 4] = 0
    count[2:, 5] = 0
    sparse = load_run(run.path)
    sparse.__dict__["positions"] = replace(run.positions, document_count=count)
    figure = plot_loss_by_position([sparse])
    (line,) = [line for line in figure.axes[0].lines if line.get_label() == run.name]
    filled = int((run.positions.document_count.sum(axis=0) > 0).sum())
    assert bins > 6
    assert len(line.get_xdata()) == filled - 1  # type: ignore[arg-type]
    plt.close(figure)


def test_an_anchor_that_is_infinite_somewhere_leaves_the_panel_to_the_arms(runs: list[Run]) -> None:
    figure = plot_loss_by_position([run for run in runs if run.name.startswith("regression")])
    (ax,) = figure.axes
    anchors = TASKS["regression"].anchors(np.arange(1, 16)).values()
    assert not all(np.isfinite(loss).all() for loss in anchors)
    arms = [np.asarray(line.get_ydata(), float) for line in ax.lines[:3]]
    assert ax.get_ylim()[1] < 2 * max(map(np.max, arms))
    plt.close(figure)


def test_training_shows_the_score_of_the_frontier(runs: list[Run]) -> None:
    """The best bin of a recall task is that of the nearest keys, where the shortest window looks perfect."""
    figure = plot_training(runs)
    columns = dict(zip(TASKS, np.reshape(figure.axes, (2, -1)).T, strict=True))
    for spent, ax in zip(("flops", "seconds"), columns["mqar"], strict=True):
        assert ax.get_ylabel() == "held-out accuracy"
        (line,) = [line for line in ax.lines if line.get_label() == "window-4"]
        positions = next(run for run in runs if run.name == "mqar-w4").positions
        assert positions is not None
        np.testing.assert_allclose(line.get_xdata(), getattr(positions, spent))
        np.testing.assert_allclose(line.get_ydata(), [overall([positions], "accuracy").value])
    assert [line.get_label() for line in columns["markov"][0].lines][-1] == "best possible"
    plt.close(figure)


def test_seconds_of_runs_that_shared_a_device_are_told_apart(runs: list[Run]) -> None:
    alone = [run for run in runs if run.name.startswith("markov")]
    shared = [replace(run, env=run.env | {"runs_per_device": 3}) for run in alone[:1]]
    for some, label in ((alone, "training time (s)"), (shared, "training time (s), up to 3 runs sharing a device")):
        figure = plot_training(some)
        assert figure.axes[1].get_xlabel() == label
        plt.close(figure)
    assert sharing(alone) == []
    assert sharing([*alone, *shared]) == ["Up to 3 runs shared a device: seconds of arms are not comparable."]


def test_a_wide_band_leaves_the_panel_to_the_lines(runs: list[Run], tmp_path: Path) -> None:
    """Two seeds that disagree have an interval many times as wide as all losses together."""
    trained = next(run for run in runs if run.name == "markov-w4")
    one, other = (replace(trained, path=tmp_path / "markov-w4" / f"seed{seed}") for seed in (0, 1))
    for run, factor in ((one, 1), (other, 3)):
        shutil.copytree(trained.path, run.path)
        positions = trained.positions
        assert positions is not None
        RunFolder(run.path).save_positions(replace(positions, document_nll_sum=positions.document_nll_sum * factor))
    figure = plot_loss_by_position([one, other])
    (ax,) = figure.axes
    lines = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    (band,) = ax.collections
    drawn = band.get_paths()[0].vertices[:, 1]
    assert np.ptp(drawn) > 3 * np.ptp(lines)
    assert ax.get_ylim()[0] < lines.min() < lines.max() < ax.get_ylim()[1]
    assert np.ptp(ax.get_ylim()) < 1.2 * np.ptp(lines)
    plt.close(figure)


def test_a_long_legend_stands_beside_its_panel(runs: list[Run]) -> None:
    figure = plot_loss_by_position([run for run in runs if run.name.startswith(("regbench", "markov"))])
    figure.canvas.draw()
    short, long = (ax for ax in figure.axes)
    for ax, beside in ((short, False), (long, True)):
        legend = ax.get_legend()
        assert legend is not None
        assert (legend.get_window_extent().x0 >= ax.get_window_extent().x1 - 1) == beside
    plt.close(figure)


def test_arms_whose_models_share_a_name_are_told_apart_without_their_tasks_name(runs: list[Run]) -> None:
    mine = [run for run in runs if run.name.startswith("mqar")]
    config = mine[0].config
    twin = replace(
        mine[0], path=mine[0].path / "twin", config={**config, "arm": {**config["arm"], "name": "mqar-twin"}}
    )
    (groups,) = group_runs([*mine, twin]).values()
    assert [group.name for group in groups] == ["softmax", "window-16", "window-4", "twin"]
    (groups,) = group_runs([mine[0], twin]).values()
    assert [group.name for group in groups] == ["mqar-softmax", "mqar-twin"]
