"""Regression: the optimum against explicit predictors, the layout of points and values, purity."""

import numpy as np
import pytest
import torch

from icl_eval.tasks import Regression
from icl_eval.tasks.regression import bayes_risk
from tests.tasks.generated import assert_pure, digest


def examples(task: Regression, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Points ``[rows, examples, dim]`` and values ``[rows, examples]`` as a model reads them."""
    inputs = task.build(0).batch("heldout", 0, rows).inputs
    assert inputs is not None
    return inputs[:, ::2, :-1].double().numpy(), inputs[:, 1::2, -1].double().numpy()


def ridge(points: np.ndarray, values: np.ndarray, penalty: float, at: int) -> np.ndarray:
    """Squared error ``[rows]`` of ridge regression on the first ``at`` examples at the next one."""
    x, y = points[:, :at], values[:, :at, None]
    gram = x.transpose(0, 2, 1) @ x + penalty * np.eye(x.shape[2])
    weights = np.linalg.solve(gram, x.transpose(0, 2, 1) @ y)[..., 0]
    return ((points[:, at] * weights).sum(1) - values[:, at]) ** 2


def test_points_and_values_stand_as_in_the_docstring() -> None:
    task = Regression(dim=3, seq_len=8, noise=0.0)
    batch = task.build(0).batch("train", 0, 5)
    points, values = batch.inputs[:, ::2], batch.inputs[:, 1::2]  # type: ignore[index]
    assert batch.tokens[0].tolist() == [0, 1] * 4
    assert batch.scored[0].tolist() == [True, False] * 4
    assert batch.position[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert (points[..., 3] == 0).all()
    assert (values[..., :3] == 0).all()
    assert torch.equal(batch.targets[:, ::2], values[..., 3])
    for row in range(5):
        x, y = points[row, :, :3].double(), values[row, :, 3].double()
        weights = torch.linalg.solve(x[:3], y[:3])
        assert x[3] @ weights == pytest.approx(y[3].item(), abs=1e-3)


@pytest.mark.parametrize("noise", [0.0, 1.0, 0.5])
def test_ridge_meets_the_optimum_of_linear_functions(noise: float) -> None:
    task = Regression(dim=8, noise=noise, seq_len=48)
    points, values = examples(task, 3000)
    for at in (0, 3, 7, 12, 23):
        error = ridge(points, values, max(noise**2, 1e-9), at)
        optimum = task.optimum(np.array([at]))[0]  # type: ignore[index]
        assert abs(error.mean() - optimum) < 4 * error.std() / len(error) ** 0.5 + 1e-6, at
    assert task.chance() == pytest.approx(task.optimum(np.array([0]))[0])  # type: ignore[index]


def test_optimum_is_near_the_values_measured_elsewhere() -> None:
    task = Regression(dim=20, noise=1.0, seq_len=1282)
    at = np.array([0, 10, 20, 40, 80, 160, 640])
    assert task.optimum(at) == pytest.approx([1.05, 0.596, 0.259, 0.0975, 0.0666, 0.0571, 0.0516], rel=0.01)


def test_the_sparse_optimum_is_met_by_averaging_over_supports_and_beats_ridge() -> None:
    task = Regression(dim=6, nonzero=2, noise=0.7, function="sparse", seq_len=32)
    points, values = examples(task, 600)
    variance, prior = task.noise**2 / task.dim, 1 / task.nonzero
    supports = [(i, j) for j in range(6) for i in range(j)]
    for at in (0, 2, 5, 15):
        log_evidence, predictions = [], []
        for support in supports:
            x, y = points[:, :at, support], values[:, :at]
            covariance = prior * x @ x.transpose(0, 2, 1) + variance * np.eye(at)
            alpha = np.linalg.solve(covariance, y[..., None])[..., 0]
            log_evidence.append(-0.5 * ((y * alpha).sum(1) + np.linalg.slogdet(covariance)[1]))
            predictions.append(prior * np.einsum("rnd,rd,rn->r", x, points[:, at, support], alpha))
        weight = np.exp(log_evidence - np.max(log_evidence, axis=0))
        prediction = (weight * predictions).sum(0) / weight.sum(0)
        error = (prediction - values[:, at]) ** 2
        optimum, spread = (f(np.array([at]))[0] for f in (task.optimum, task.optimum_error))  # type: ignore[index]
        assert abs(error.mean() - optimum) < 4 * np.hypot(error.std() / len(error) ** 0.5, spread) + 1e-9, at
    late = np.array([10])
    assert task.optimum(late) < 0.9 * bayes_risk(6, 6, 0.7, 16)[0][late]  # type: ignore[operator]


def test_least_squares_is_what_its_anchor_says() -> None:
    task = Regression(dim=8, noise=1.0, seq_len=80)
    points, values = examples(task, 4000)
    for at in (2, 4, 14, 39):
        x, y = points[:, :at], values[:, :at, None]
        error = ((points[:, at] * (np.linalg.pinv(x) @ y)[..., 0]).sum(1) - values[:, at]) ** 2
        anchor = task.anchors(np.array([at]))["least squares"][0]
        assert abs(error.mean() - anchor) < 5 * error.std() / len(error) ** 0.5, at


@pytest.mark.parametrize("function", ["linear", "sparse", "network"])
def test_values_have_variance_one_and_other_contexts_tell_nothing(function: str) -> None:
    task = Regression(dim=6, noise=0.0, function=function, seq_len=64)  # type: ignore[arg-type]
    points, values = examples(task, 800)
    assert (values**2).mean() == pytest.approx(1, rel=0.12)
    assert abs(values.mean()) < 0.1
    own, other = ridge(points, values, 1e-3, 31), ridge(points, np.roll(values, 1, axis=0), 1e-3, 31)
    mixed = np.concatenate([np.roll(values, 1, axis=0)[:, :31], values[:, 31:]], axis=1)
    other = ridge(points, mixed, 1e-3, 31)
    assert own.mean() < 0.9
    assert other.mean() > task.chance()


GOLDEN = {"linear": "1dd7c039ae45941a", "sparse": "a581e755a31dc103", "network": "7079d651bb13e4a4"}


@pytest.mark.parametrize("function", GOLDEN)
def test_batches_depend_on_seed_split_and_index_alone(function: str) -> None:
    task = Regression(function=function, seq_len=64)  # type: ignore[arg-type]
    assert_pure(task)
    # Of version 1. A change here means that the same config gives other data: raise Regression.version.
    assert digest(task.build(0).batch("train", 7, 8)) == GOLDEN[function]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq_len": 5}, "seq_len = 5: must be even"),
        ({"noise": -1.0}, "noise = -1.0: must be at least 0"),
        ({"function": "cubic"}, "function = 'cubic': must be 'linear' or 'sparse' or 'network'"),
        ({"function": "sparse", "nonzero": 30}, r"nonzero = 30: must be in \[1, dim = 20\]"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regression(**fields)
