"""The frontier preset: scales build, compute is matched, states are spread."""

import pytest

from icl_eval.config import config_from_dict
from icl_eval.experiments.state_frontier import SCALES, experiment


@pytest.mark.parametrize("scale", SCALES)
def test_arms_of_a_task_have_equal_flops_and_spread_states(scale: str) -> None:
    preset = experiment(scale)
    assert config_from_dict(preset.to_dict()) == preset
    assert len(preset.tasks()) == 4
    for task, arms in preset.tasks().items():
        assert {arm.model.mixers[0].name for arm in arms} == {"softmax", "window", "linear", "power"}
        spent = [arm.schedule().flops for arm in arms]
        assert max(spent) / min(spent) < 1.02
        states = {arm.name: arm.model.state_size(task.seq_len).mathematical for arm in arms}
        windows = [size for name, size in states.items() if "window" in name]
        powers = [size for name, size in states.items() if "power" in name]
        assert windows == sorted(set(windows))
        assert powers == sorted(set(powers))
        assert max(states.values()) > 4 * min(states.values())


def test_long_text_stands_at_16384_tokens_beyond_the_smoke_scale() -> None:
    for scale in ("h200", "paper"):
        assert max(task.seq_len for task in experiment(scale).tasks()) == 16_384
        assert len(experiment(scale).seeds) == 3


def test_an_unknown_scale_gets_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown scale 'h20'; did you mean 'h200'"):
        experiment("h20")
