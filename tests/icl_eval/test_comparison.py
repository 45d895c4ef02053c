"""Paired differences: what is there is found, what is not there is not, over all positions at once."""

from dataclasses import replace

import numpy as np
import pytest

from icl_eval.comparison import compare
from icl_eval.positions import Positions
from tests.icl_eval.test_statistics import positions

BINS = 12


def arms(seed: int, names: str, documents: int, seeds: int = 1) -> dict[str, list[Positions]]:
    """Arms on the same documents, each with losses of its own."""
    rng = np.random.default_rng(seed)
    common = rng.normal(3, 1, (documents, 1)) + rng.normal(0, 0.3, (documents, BINS)).cumsum(axis=1)
    made = {}
    for name in names:
        own = common + rng.normal(0, 0.2, (documents, BINS)).cumsum(axis=1) / 2
        made[name] = [positions(own + rng.normal(0, 0.1, (1, BINS))) for _ in range(seeds)]
    return made


@pytest.mark.parametrize(("names", "documents"), [("ab", 40), ("ab", 12), ("abc", 40)])
def test_of_equal_arms_one_in_twenty_experiments_finds_any_difference(
    names: str, documents: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over all positions and all pairs: the family-wise error, on 200 experiments in which there is none."""
    monkeypatch.setattr("icl_eval.statistics.RESAMPLES", 500)
    rng = np.random.default_rng(documents)
    found = 0
    for _ in range(200):
        common = rng.normal(3, 1, (documents, 1))
        made = {name: [positions(common + rng.normal(0, 0.2, (documents, BINS)).cumsum(axis=1) / 2)] for name in names}
        found += any(difference.verdicts.any() for difference in compare(made))
    assert 0.01 <= found / 200 <= 0.09


@pytest.mark.parametrize(
    "memory", [0.0, 0.9, 0.97, 1.0], ids=lambda memory: f"errors like their neighbour's by {memory}"
)
def test_three_equal_seeds_differ_in_one_of_twenty_experiments_at_most(
    memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing but seeds makes noise, over 30 bins; and intervals stay within what three seeds can tell."""
    monkeypatch.setattr("icl_eval.statistics.RESAMPLES", 500)
    rng = np.random.default_rng(7)
    bins, spread = 30, 0.02
    covariance = spread**2 * memory ** np.abs(np.subtract.outer(np.arange(bins), np.arange(bins)))
    documents = rng.normal(3, 1, (6, 1))
    found, widths = 0, []
    for _ in range(200):
        luck = rng.multivariate_normal(np.zeros(bins), covariance, (2, 3), method="eigh")
        made = {name: [positions(documents + own) for own in runs] for name, runs in zip("ab", luck, strict=True)}
        (difference,) = compare(made)
        found += difference.verdicts.any()
        widths.append(np.median(difference.curve.estimate.high - difference.curve.estimate.value))
    standard_error = spread * np.sqrt(2 / 3)
    assert found / 200 <= 0.08
    assert np.median(widths) < 6 * standard_error


def test_the_bin_in_which_seeds_differ_most_is_not_smoothed_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds that learn something at other times differ much in the last bin and little before."""
    monkeypatch.setattr("icl_eval.statistics.RESAMPLES", 500)
    rng = np.random.default_rng(8)
    documents, spread = rng.normal(3, 1, (6, 1)), np.append(np.full(BINS - 1, 0.01), 0.1)
    found = 0
    for _ in range(200):
        luck = rng.normal(0, spread, (2, 3, BINS))
        made = {name: [positions(documents + own) for own in runs] for name, runs in zip("ab", luck, strict=True)}
        found += any(difference.verdicts.any() for difference in compare(made))
    assert found / 200 <= 0.12


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("error")
def test_a_bin_that_is_not_finite_decides_nothing_there_or_elsewhere(value: float) -> None:
    made = arms(5, "ab", 20, seeds=3)
    without = compare(made)[0]
    means = made["a"][1].document_nll_sum.copy()
    means[..., 4] = value
    made["a"][1] = replace(made["a"][1], document_nll_sum=means)
    (difference,) = compare(made)
    assert np.isnan(difference.curve.estimate.low[4])
    assert difference.verdicts[4] == 0
    others = np.arange(BINS) != 4
    assert np.isfinite(difference.curve.estimate.low[others]).all()
    width, before = (np.subtract(d.curve.estimate.high, d.curve.estimate.low)[others] for d in (difference, without))
    np.testing.assert_allclose(width, before, rtol=0.5)


def test_arms_with_unequal_numbers_of_seeds_are_compared() -> None:
    made = arms(6, "ab", 40, seeds=3)
    paired = compare(made)[0].curve.estimate
    made["b"] = made["b"][:2]
    (difference,) = compare(made)
    assert (difference.curve.estimate.high - difference.curve.estimate.low > paired.high - paired.low).mean() > 0.5


def test_a_difference_is_found_where_it_is_and_nowhere_else() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(3, 1, (40, BINS))
    first = common + rng.normal(0, 0.1, common.shape)
    second = common + rng.normal(0, 0.1, common.shape) + 0.2 * (np.arange(BINS) >= 8)
    (difference,) = compare({"a": [positions(first)], "b": [positions(second)]})
    assert difference.verdicts.tolist() == [0] * 8 + [-1] * 4
    np.testing.assert_allclose(difference.curve.estimate.value, (first - second).mean(axis=0))
    assert (difference.curve.estimate.high - difference.curve.estimate.low).max() < 0.2, "paired: the documents' spread"


@pytest.mark.parametrize("documents", [4, 16])
def test_bins_that_few_documents_reach_are_left_out_and_blur_no_others(documents: int) -> None:
    rng = np.random.default_rng(0)
    count = np.full((documents, BINS), 10.0)
    count[: documents // 2, -2] = count[1:, -1] = 0
    losses = rng.normal(3, 0.1, (2, documents, BINS)) + np.array([0, 1])[:, None, None]
    made = {
        n: [replace(positions(x), document_count=count, document_nll_sum=x[None] * count)]
        for n, x in zip("ab", losses, strict=True)
    }
    (difference,) = compare(made)
    assert difference.curve.end[-1] == BINS - 2, "reached by half of the documents; the last bin by one"
    assert np.isfinite(np.stack(difference.curve.estimate)).all()
    assert difference.verdicts.tolist() == [-1] * (BINS - 1)


@pytest.mark.filterwarnings("error")
def test_a_model_does_not_differ_from_itself() -> None:
    runs = arms(3, "a", 20)["a"]
    (difference,) = compare({"a": runs, "copy": runs})
    np.testing.assert_allclose(difference.curve.estimate, 0, atol=1e-8)
    assert not difference.verdicts.any()


def test_seeds_that_differ_widen_the_intervals() -> None:
    one, three = arms(1, "ab", 40), arms(1, "ab", 40, seeds=3)
    width = {
        n: np.ptp(np.stack(compare(a)[0].curve.estimate[1:]), axis=0).mean()
        for n, a in (("one", one), ("three", three))
    }
    assert width["three"] > width["one"]


def test_pairs_may_be_chosen() -> None:
    made = arms(2, "abc", 20)
    assert [(d.first, d.second) for d in compare(made, pairs=[("a", "b"), ("c", "b")])] == [("a", "b"), ("c", "b")]
    assert [(d.first, d.second) for d in compare(made)] == [("a", "b"), ("a", "c"), ("b", "c")]


def test_other_documents_cannot_be_compared() -> None:
    made = arms(3, "ab", 20)
    made["b"] = [replace(made["b"][0], documents=np.arange(1, 21))]
    with pytest.raises(ValueError, match="a and b were not measured on the same documents"):
        compare(made)


@pytest.mark.filterwarnings("error")
def test_bits_per_byte_of_one_text_in_two_tokenisers() -> None:
    nats = np.random.default_rng(4).normal(3, 0.5, (20, BINS))
    text = np.full((20, BINS), 40.0)
    fine = replace(positions(nats, 40.0), document_bytes=text)
    coarse = replace(positions(4 * nats, 10.0), document_bytes=text)
    (difference,) = compare({"fine": [fine], "coarse": [coarse]}, "bits_per_byte")
    np.testing.assert_allclose(difference.curve.estimate, 0, atol=1e-8)
    assert not difference.verdicts.any()
