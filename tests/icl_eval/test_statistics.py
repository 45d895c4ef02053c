"""Bins, intervals and the best-context loss, on data whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from icl_eval.positions import Positions, log_bin_edges
from icl_eval.statistics import (
    Metric,
    best_context_loss,
    by_seed,
    context_gain,
    curve,
    draws,
    each_once,
    estimate,
    overall,
    resampled_bins,
)


def positions(document_means: np.ndarray, tokens_a_cell: float = 10.0) -> Positions:
    """One snapshot whose documents have the given mean losses ``[N, bins]``."""
    N, bins = document_means.shape
    count = np.full((N, bins), tokens_a_cell)
    one = np.zeros((1, 4))
    edges = np.arange(bins + 1)
    sums = (document_means * count)[None]
    spent = {name: np.array([1.0]) for name in ("step", "tokens", "flops", "seconds")}
    return Positions(
        **spent, nll_sum=one, nll_square_sum=one, correct=one, document_nll_sum=sums, document_correct=0 * sums,
        count=one[0], documents=np.arange(N), bin_edges=edges, document_count=count,
    )  # fmt: skip


@pytest.mark.parametrize("num_positions", [1, 2, 3, 100, 513, 65_537])
def test_bins_cover_every_position_once_and_grow_by_half_octaves(num_positions: int) -> None:
    edges = log_bin_edges(num_positions)
    assert edges[0] == 0
    assert edges[-1] == num_positions
    assert (np.diff(edges) > 0).all()
    if num_positions > 100:
        ends = edges[1:-1] - 1
        assert {16, 32, 64} <= set(ends.tolist())
        assert np.allclose(ends[10:] / ends[9:-1], 2**0.5, rtol=0.03)


def test_intervals_cover_the_truth_as_often_as_they_claim() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        value, low, high = overall([positions(rng.normal(2.0, 0.5, (60, 1)))])
        assert low < value < high
        covered += low <= 2.0 <= high
    assert 0.90 <= covered / 200 <= 0.985


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_seeds", [1, 3])
def test_resamples_without_the_few_documents_that_reach_a_bin_are_left_out(num_seeds: int) -> None:
    rng = np.random.default_rng(3)
    means = rng.normal(2.0, 0.1, (40, 2))
    reached = positions(means)
    assert reached.document_count is not None
    count = reached.document_count.copy()
    count[2:, 1] = 0
    runs = [
        replace(reached, document_count=count, document_nll_sum=(means + 0.01 * seed)[None] * count)
        for seed in range(num_seeds)
    ]
    value, low, high = curve(runs).estimate
    assert value[1] == pytest.approx(means[:2, 1].mean() + 0.005 * (num_seeds - 1))
    assert (low < value).all()
    assert (value < high).all()
    drawn = draws(np.stack([run.document_nll_sum[0, :, 1] for run in runs]), count[:, 1])
    assert estimate(drawn) == pytest.approx((value[1], low[1], high[1]))
    assert np.isnan(drawn).any(), "some resamples hold neither of the two documents"


def test_intervals_widen_with_seeds_that_differ() -> None:
    rng = np.random.default_rng(2)
    documents = rng.normal(2.0, 0.1, (40, 3))
    alike = curve([positions(documents), positions(documents)]).estimate
    apart = curve([positions(documents - 0.5), positions(documents + 0.5)]).estimate
    np.testing.assert_allclose(alike.value, apart.value)
    assert (apart.high - apart.low > 5 * (alike.high - alike.low)).all()


def test_intervals_over_three_seeds_cover_the_truth() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for _ in range(150):
        seeds = [positions(np.full((20, 1), 2.0 + shift)) for shift in rng.normal(0.0, 0.1, 3)]
        value = overall(seeds)
        covered += value.low <= 2.0 <= value.high
    assert covered / 150 >= 0.88


@pytest.mark.parametrize("confidence", [0.95, 1 - 0.05 / 12])
@pytest.mark.parametrize("losses", [(1.9, 2.0, 2.1), (1.8, 2.1, 2.1)], ids=["evenly", "one-apart"])
def test_intervals_of_three_seeds_are_students(losses: tuple[float, ...], confidence: float) -> None:
    sums = np.repeat(np.array(losses)[:, None], 9, axis=1)
    value, low, high = estimate(draws(sums, np.ones(9), confidence), confidence)
    student = stats.t.interval(confidence, 2, np.mean(losses), stats.sem(losses))
    assert (low - value, high - value) == pytest.approx(np.array(student) - value, rel=0.1)


def test_resamples_are_paired_across_arms() -> None:
    documents = np.random.default_rng(3).normal(2.0, 0.5, (50, 4))
    first, second = (curve([positions(d)]).estimate for d in (documents, documents + 0.25))
    np.testing.assert_allclose(second.low - first.low, 0.25)
    np.testing.assert_allclose(second.high - first.high, 0.25)


def test_best_context_loss_is_not_flattered_by_noise() -> None:
    rng = np.random.default_rng(4)
    losses = [best_context_loss([positions(rng.normal(2.0, 1.0, (40, 20)))]).estimate.value for _ in range(200)]
    assert np.mean(losses) == pytest.approx(2.0, abs=0.05)
    naive = [rng.normal(2.0, 1.0, (40, 20)).mean(axis=0).min() for _ in range(200)]
    assert np.mean(naive) < 1.8


def test_halves_are_as_fair_as_leaving_one_document_out_and_less_noisy() -> None:
    """On flat curves of heavy-tailed documents: what the documentation says of :func:`cross_fitted`."""
    rng = np.random.default_rng(11)
    halves, left_out = [], []
    for _ in range(400):
        offset = rng.normal(0.0, 0.4, (60, 1))
        losses = 2.4 + offset + 0.35 * rng.standard_t(3, (60, 10))
        rest = (losses.sum(axis=0) - losses).argmin(axis=1)
        halves.append(best_context_loss([positions(losses)]).estimate.value - offset.mean())
        left_out.append(losses[np.arange(60), rest].mean() - offset.mean())
    assert np.mean(halves) == pytest.approx(2.4, abs=0.02)
    assert np.mean(left_out) == pytest.approx(2.4, abs=0.03)
    assert 1.4 < np.std(left_out) / np.std(halves) < 2.0


def test_best_context_loss_finds_the_bin_and_passes_over_rare_ones() -> None:
    means = np.tile(np.array([3.0, 1.0, 2.0]), (10, 1))
    best = best_context_loss([positions(means)])
    assert (best.start, best.end) == (1, 1)
    assert best.estimate.value == pytest.approx(1.0)
    rare = positions(means)
    count = rare.document_count.copy()
    count[:6, 1] = 0
    sums = rare.document_nll_sum.copy()
    sums[:, :6, 1] = 0
    assert best_context_loss([replace(rare, document_count=count, document_nll_sum=sums)]).start == 2


def test_a_few_tokens_at_the_first_positions_are_never_the_best_context() -> None:
    """Nine sequences of 8,192: bins of the first positions hold nine tokens, whose losses stray by 2 nats."""
    rng = np.random.default_rng(9)
    edges = log_bin_edges(8192)
    count = np.tile(np.diff(edges).astype(float), (9, 1))
    for _ in range(50):
        sums = (1.2 * count + rng.normal(0.0, 2.0, count.shape) * np.sqrt(count))[None]
        run = replace(positions(count), bin_edges=edges, document_count=count, document_nll_sum=sums)
        assert best_context_loss([run]).start > 8192 / 2**6


def test_context_gain_is_paired_over_documents() -> None:
    rng = np.random.default_rng(5)
    documents = rng.normal(2.0, 1.0, (40, 1)) - np.array([0.0, 0.1, 0.3])
    gain = context_gain([positions(documents)], early=1)
    assert gain.value == pytest.approx(0.2)
    assert gain.high - gain.low < 1e-9
    noise = context_gain([positions(rng.normal(2.0, 1.0, (40, 3)))], early=0)
    assert noise.low < 0 < noise.high


def test_runs_on_other_documents_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="not measured on the same held-out documents"):
        curve([positions(np.ones((4, 2))), positions(np.ones((5, 2)))])


def test_bits_per_byte_compares_tokenisers() -> None:
    """One text in tokens of one byte, and in tokens of four bytes that cost four times as much."""
    nats = np.array([[1.0, 2.0], [1.5, 2.5]])
    fine, coarse = positions(nats, 40.0), positions(4 * nats, 10.0)
    text = np.full((2, 2), 40.0)
    bits = [curve([replace(run, document_bytes=text)], "bits_per_byte").estimate for run in (fine, coarse)]
    np.testing.assert_allclose(bits[0].value, np.array([1.25, 2.25]) / np.log(2))
    np.testing.assert_allclose(bits[0], bits[1])
    whole = overall([replace(coarse, document_bytes=text)], "bits_per_byte").value
    assert whole == pytest.approx(1.75 / np.log(2))
    gain = context_gain([replace(coarse, document_bytes=text)], early=0, metric="bits_per_byte")
    assert gain.value == pytest.approx(-1 / np.log(2))
    best = best_context_loss([replace(coarse, document_bytes=text)], metric="bits_per_byte")
    assert best.estimate.value == pytest.approx(1.25 / np.log(2))
    with pytest.raises(ValueError, match="bits per byte: the tokens are not text"):
        overall([coarse], "bits_per_byte")


@pytest.mark.parametrize("metric", ["nll", "bits_per_byte"])
def test_every_document_counts_once_however_many_windows_of_it_were_read(metric: Metric) -> None:
    """Books whose losses fall by as much as they are long: the long ones would hide the fall."""
    windows = np.array([7, 34, 2, 1, 1, 1, 2, 19, 7.0])[:, None]
    means = np.random.default_rng(10).normal(2.0, 0.2, (9, 1)) + np.array([0.3, 0.2, 0.1]) / windows
    count = windows * np.array([10, 20, 40])
    run = replace(positions(means), document_nll_sum=(means * count)[None], document_count=count, document_bytes=count)
    unit = np.log(2) if metric == "bits_per_byte" else 1.0
    books = means / unit
    np.testing.assert_allclose(curve([run], metric).estimate.value, books.mean(axis=0))
    np.testing.assert_allclose(resampled_bins([run], metric=metric)[0], books.mean(axis=0))
    assert overall([run], metric).value == pytest.approx((books @ np.array([1, 2, 4]) / 7).mean())
    assert context_gain([run], early=0, metric=metric).value == pytest.approx((books[:, 0] - books[:, 2]).mean())
    assert best_context_loss([run], metric=metric).estimate.value == pytest.approx(books[:, 2].mean())


def test_documents_of_as_many_tokens_are_left_as_they_are() -> None:
    rng = np.random.default_rng(11)
    count = rng.multinomial(64, [0.2, 0.3, 0.5], 12).astype(float)
    sums = rng.normal(2.0, 0.5, (3, 12, 3)) * count
    once = each_once(sums, count)
    np.testing.assert_array_equal(once[0] * 64, sums)
    np.testing.assert_array_equal(once[1] * 64, count)
    run = replace(positions(count), document_nll_sum=sums[:1], document_count=count)
    np.testing.assert_allclose(curve([run]).estimate.value, sums[0].sum(axis=0) / count.sum(axis=0), rtol=1e-14)


@pytest.mark.parametrize("text", [None, np.full((3, 2), 7.0)], ids=["no bytes", "bytes"])
def test_positions_survive_their_file_with_and_without_bytes(text: np.ndarray | None) -> None:
    before = replace(positions(np.ones((3, 2))), document_bytes=text)
    after = Positions.from_bytes(before.to_bytes())
    np.testing.assert_equal(vars(after), vars(before))


def test_documents_of_one_source_are_read_apart() -> None:
    means = np.array([[1.0], [2.0], [4.0]])
    run = replace(positions(means), documents=np.array([3, 5, 9]), document_bytes=np.full((3, 1), 20.0))
    part = run.of(np.array([3, 9, 11]))
    assert part.documents.tolist() == [3, 9]
    assert overall([part]).value == pytest.approx(2.5)
    assert overall([part], "bits_per_byte").value == pytest.approx(1.25 / np.log(2))


def test_intervals_over_nine_documents_cover_the_truth() -> None:
    rng = np.random.default_rng(7)
    covered = 0
    for _ in range(300):
        _, low, high = overall([positions(rng.normal(2.0, 0.5, (9, 1)))])
        covered += low <= 2.0 <= high
    assert 0.915 <= covered / 300 <= 0.985


def test_functions_of_draws_are_paired() -> None:
    rng = np.random.default_rng(8)
    counts = np.full(30, 10.0)
    first = rng.normal(20.0, 5.0, (3, 30))
    second = first - 2.0
    gain = draws(first, counts) - draws(second, counts)
    value, low, high = estimate(gain)
    assert low == pytest.approx(0.2)
    assert value == pytest.approx(0.2)
    assert high == pytest.approx(0.2)
    np.testing.assert_allclose(by_seed(gain), 0.2)
    value, low, high = estimate(draws(first, counts))
    assert by_seed(draws(first, counts)).mean() == pytest.approx(value)
    wider = estimate(draws(first, counts, 0.99), 0.99)
    assert wider.low < low < value < high < wider.high
