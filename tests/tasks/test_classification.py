"""Classification: the Bayes predictor against its slow form and the optimum, labels, the few-shot form, purity."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from icl_eval.tasks import Classification
from icl_eval.tasks.classification import bayes_probabilities
from tests.tasks.generated import assert_pure, digest

FEW_SHOT = Classification(num_classes=4, dim=63, noise=0.1, burstiness=2, num_labels=32, seq_len=17)


def losses(task: Classification, rows: int, shift: int = 0) -> np.ndarray:
    """Bayes losses ``[rows, points]`` on held-out batches, of labels that stand ``shift`` sequences further on."""
    batch = task.build(0).batch("heldout", 0, rows)
    points, labels = batch.inputs[:, ::2].double().numpy(), batch.targets[:, ::2].numpy() - 1  # type: ignore[index]
    probability = bayes_probabilities(task, labels, points)
    asked = np.roll(labels, shift, axis=0)
    return -np.log(np.take_along_axis(probability, asked[..., None], axis=2)[..., 0])


def test_labels_follow_points_and_belong_to_their_classes() -> None:
    batch = Classification(num_classes=5, dim=7, noise=0.01, seq_len=40).build(0).batch("train", 0, 6)
    assert torch.equal(batch.targets[:, ::2], batch.tokens[:, 1::2])
    assert (batch.tokens[:, ::2] == 0).all()
    assert (batch.inputs[:, 1::2] == 0).all()  # type: ignore[index]
    assert batch.scored[0].tolist() == [True, False] * 20
    for points, labels in zip(batch.inputs[:, ::2], batch.targets[:, ::2], strict=True):  # type: ignore[index]
        near = torch.cdist(points, points) < 0.2
        assert torch.equal(near, labels[:, None] == labels)


def test_bayes_is_the_posterior_of_the_definition() -> None:
    task = Classification(num_classes=3, dim=2, noise=0.8, seq_len=12)
    classes, points = task.examples(np.random.default_rng(3), 4)
    probabilities = bayes_probabilities(task, classes, points)
    for row in range(4):
        for t in range(6):
            densities = []
            for c in range(3):
                mine = points[row, :t][classes[row, :t] == c]
                n, noise = len(mine), task.noise**2
                mean = mine.sum(0) / (n + noise)
                cov = (noise + noise / (n + noise)) * np.eye(2)
                densities.append(multivariate_normal(mean, cov).pdf(points[row, t]))
            np.testing.assert_allclose(probabilities[row, t], densities / np.sum(densities), rtol=1e-9)


def test_bayes_meets_the_optimum_and_labels_of_other_sequences_do_not() -> None:
    task = Classification(num_classes=4, dim=5, noise=0.7, seq_len=40)
    loss, position = losses(task, 1500), np.arange(20)
    deviation = abs(loss.mean(0) - task.optimum(position)) / np.hypot(
        loss.std(0) / len(loss) ** 0.5, task.optimum_error(position)
    ).clip(1e-9)
    assert deviation[1:].max() < 4.5
    assert loss[:, 0] == pytest.approx(task.chance())
    assert losses(task, 300, shift=1)[:, 10:].mean() > task.chance()


@pytest.mark.parametrize(
    ("classes", "examples", "loss"), [(16, 16, 1.58), (16, 64, 0.50), (16, 1024, 0.20), (64, 64, 2.77)]
)
def test_optimum_is_near_the_values_measured_elsewhere(classes: int, examples: int, loss: float) -> None:
    task = Classification(num_classes=classes, seq_len=2 * examples)
    last = np.arange(examples - max(examples // 10, 1), examples)
    assert task.optimum(last).mean() == pytest.approx(loss, abs=0.1)


def test_the_few_shot_form_scores_one_query_of_a_class_shown() -> None:
    batch = FEW_SHOT.build(0).batch("train", 0, 200)
    assert batch.scored.sum(1).eq(1).all()
    assert batch.scored[:, -1].all()
    assert (batch.position[:, -1] == 8).all()
    shown, query = batch.tokens[:, 1::2], batch.targets[:, -1]
    assert ((shown == query[:, None]).sum(1) == 2).all()
    assert all(len(row.unique()) == 4 for row in shown)
    assert set(query.tolist()) == set(range(1, 33))
    assert FEW_SHOT.optimum(np.array([8])) == pytest.approx(0, abs=1e-6)
    points = batch.inputs[:, ::2]  # type: ignore[index]
    nearest = (points[:, :-1] - points[:, -1:]).norm(dim=2).argmin(1)
    assert torch.equal(shown.gather(1, nearest[:, None])[:, 0], query)


GOLDEN = {"streaming": "fcc407c276f29843", "few-shot": "dbcf38f76116065a"}


@pytest.mark.parametrize("form", GOLDEN)
def test_batches_depend_on_seed_split_and_index_alone(form: str) -> None:
    task = FEW_SHOT if form == "few-shot" else Classification(seq_len=64)
    assert_pure(task)
    # Of version 1. A change here means that the same config gives other data: raise Classification.version.
    assert digest(task.build(0).batch("train", 7, 8)) == GOLDEN[form]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_classes": 1}, r"num_classes = 1: must be in \[2, 1024\]"),
        ({"num_labels": 32}, "num_labels = 32: must be None or num_classes without burstiness"),
        ({"burstiness": 2, "num_labels": 8}, "num_labels = 8: must be at least num_classes = 16"),
        ({"burstiness": 2, "seq_len": 64}, "seq_len = 64: must be 65"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classification(**fields)
