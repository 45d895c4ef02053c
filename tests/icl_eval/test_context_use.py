"""Reach, gain, slope and extrapolation on curves whose truth is known."""

from dataclasses import replace

import numpy as np
import pytest

from icl_eval.context_use import extrapolation, fall_per_octave, useful_context
from icl_eval.positions import Positions, log_bin_edges
from icl_eval.statistics import icl_gain
from tests.icl_eval.test_statistics import positions

EDGES = log_bin_edges(4097)
ENDS = EDGES[1:] - 1
CENTERS = np.sqrt(np.maximum(EDGES[:-1], 0.5) * np.maximum(ENDS, 0.5))


def measured(loss: np.ndarray, noise: float, seed: int, documents: int = 40) -> Positions:
    """Documents of a curve ``[bins]``, each with an offset of its own and noise in every bin."""
    rng = np.random.default_rng(seed)
    means = loss + rng.normal(0, 0.5, (documents, 1)) + rng.normal(0, noise, (documents, len(loss)))
    return replace(positions(means), bin_edges=EDGES)


def flat_after(position: int) -> np.ndarray:
    """A loss that falls by 0.3 nats an octave up to a position and not at all beyond."""
    return 5 - 0.3 * np.log2(np.minimum(CENTERS, position))


@pytest.mark.parametrize("knee", [64, 512])
def test_useful_context_is_where_the_curve_goes_flat(knee: int) -> None:
    truth = ENDS[flat_after(knee) > flat_after(knee).min() + 0.01].max()
    reaches = [useful_context([measured(flat_after(knee), 0.05, seed)]) for seed in range(60)]
    covered = np.mean([reach.low <= truth <= reach.high for reach in reaches])
    assert covered >= 0.9
    assert np.mean([truth / 2 <= reach.low <= truth for reach in reaches]) >= 0.9, "it is no lazy interval"
    exact = useful_context([measured(flat_after(knee), 0.0, 0)])
    assert exact == (truth, truth, truth)


def test_useful_context_of_three_seeds_allows_for_how_they_differ() -> None:
    loss = flat_after(512)
    alike = useful_context([measured(loss, 0.02, 0) for _ in range(3)])
    slopes = np.linspace(-0.06, 0.06, 3)[:, None] * np.log2(CENTERS)
    apart = useful_context([measured(loss + slope, 0.02, 0) for slope in slopes])
    assert alike is not None
    assert apart is not None
    assert alike.low <= 512 <= alike.high
    assert apart.low < alike.low
    assert apart.high >= alike.high


def test_useful_context_of_a_curve_that_never_falls_is_none_of_it() -> None:
    reaches = [useful_context([measured(np.full(len(ENDS), 3.0), 0.2, seed)]) for seed in range(100)]
    assert np.mean([reach.low > 0 for reach in reaches]) <= 0.08, "false gains, over all bins at once"


def test_useful_context_stops_before_losses_that_rise_again() -> None:
    loss = flat_after(256) + 0.4 * np.maximum(np.log2(CENTERS / 1024), 0)
    reach = useful_context([measured(loss, 0.005, 0)])
    assert 128 <= reach.low <= reach.high <= 256


def test_three_documents_are_too_few_to_tell() -> None:
    assert useful_context([measured(flat_after(64), 0.1, 0, documents=3)]) is None


def test_gain_and_slope_of_a_straight_line() -> None:
    loss = 5 - 0.3 * np.log2(CENTERS)
    run = measured(loss, 0.0, 0)
    early = int(np.searchsorted(EDGES, 32, side="right")) - 1
    assert icl_gain([run], 32).value == pytest.approx(loss[early] - loss[-1])
    np.testing.assert_allclose(fall_per_octave([run], 32, 4096), 0.3)
    noisy = measured(loss, 0.3, 1)
    _, low, high = fall_per_octave([noisy], 32, 4096)
    assert low < 0.3 < high
    assert high - low < 0.1
    with pytest.raises(ValueError, match="fewer than two bins"):
        fall_per_octave([run], 4000, 4096)


def test_gain_in_bits_per_byte() -> None:
    loss = 5 - 0.3 * np.log2(CENTERS)
    run = measured(loss, 0.0, 0)
    text = replace(run, document_bytes=4 * run.document_count)
    nats, bits = icl_gain([text], 32), icl_gain([text], 32, "bits_per_byte")
    np.testing.assert_allclose(bits, np.array(nats) / np.log(2) / 4)


def test_extrapolation_is_what_is_lost_beyond_the_training_context() -> None:
    loss = flat_after(1024) + np.where(EDGES[:-1] > 1024, 0.7, 0.0)
    run = measured(loss, 0.0, 0)
    within = (EDGES[:-1] > 512) & (ENDS <= 1024)
    lost = loss[-1] - loss[within].mean()
    np.testing.assert_allclose(extrapolation([run], 1024), lost)
    assert lost > 0.5
    assert extrapolation([run], 4096) is None
