"""Solving for a window, degree, head size or width: nearest by brute force, and honest about what it misses."""

from dataclasses import replace

import pytest

from icl_eval.models import RWKV, Linear, Mamba2, Match, MixerConfig, ModelConfig, Power, Softmax, Window

CONTEXT = 512
SOFTMAX = ModelConfig(num_layers=2, mixers=(Softmax(width=64, num_heads=4),))
POWER = replace(SOFTMAX, mixers=(Power(width=64, num_heads=4),))
WINDOW = replace(SOFTMAX, mixers=(Window(width=64, num_heads=4),), backbone=RWKV())


def test_window_with_powers_state() -> None:
    match = Match.of(POWER, "state", context=CONTEXT)
    solved = match.solve(WINDOW, "window")
    by_hand = [replace(WINDOW, mixers=(replace(WINDOW.mixers[0], window=w),)) for w in range(1, CONTEXT + 1)]
    assert abs(match.mismatch(solved)) == min(abs(match.mismatch(model)) for model in by_hand)
    assert 0 < abs(match.mismatch(solved)) < 0.01
    assert solved.backbone == WINDOW.backbone


def test_degree_with_a_given_state_keeps_to_degrees_that_exist() -> None:
    for asked in (1, 2, 4):
        target = 2 * POWER.mixers[0].kv_heads * 17 * {1: 16, 2: 136, 4: 3876}[asked]
        degree = Match(quantity="state", target=target, context=CONTEXT).solve(POWER, "degree").mixers[0].degree
        assert degree == max(asked, 2)
    signed = replace(POWER, mixers=(replace(POWER.mixers[0], normalization="none"),))
    assert Match(quantity="state", target=2 * 4 * 16 * 816, context=1).solve(signed, "degree").mixers[0].degree == 3


def test_head_size_with_the_state_of_softmax() -> None:
    match = Match.of(SOFTMAX, "state", context=CONTEXT)
    linear = replace(SOFTMAX, mixers=(Linear(width=64, num_heads=4),))
    assert match.solve(linear, "head_dim").mixers[0].head_dim == 64
    small = Match(quantity="state", target=2 * 64 * 8, context=CONTEXT)
    assert small.solve(linear, "head_dim").mixers[0].head_dim == 8
    assert small.sentence(small.solve(linear, "head_dim")) == (
        "1,024 elements of state at context 512, exactly as asked"
    )


@pytest.mark.parametrize("quantity", ["parameters", "flops"])
def test_width_for_parameters_and_flops(quantity: str) -> None:
    wide = replace(SOFTMAX, mixers=(Softmax(width=176, num_heads=11),))
    match = Match.of(wide, quantity, context=CONTEXT)  # type: ignore[arg-type]
    solved = match.solve(POWER, "width")
    assert solved.mixers[0].head_dim == 16
    neighbours = [replace(POWER, mixers=(Power(width=16 * heads, num_heads=heads),)) for heads in range(1, 20)]
    assert abs(match.mismatch(solved)) == min(abs(match.mismatch(model)) for model in neighbours)


@pytest.mark.parametrize("quantity", ["parameters", "flops"])
@pytest.mark.parametrize("mixer", [Power(width=64, num_heads=4), Mamba2(width=64, num_heads=4)], ids=lambda m: m.name)
def test_head_dim_where_the_quantity_falls_or_turns_along_it(mixer: MixerConfig, quantity: str) -> None:
    model = ModelConfig(mixers=(mixer,))
    for heads in (1, 2, 8, 16):
        asked = replace(model, mixers=(replace(mixer, num_heads=heads),))
        match = Match.of(asked, quantity, context=300)  # type: ignore[arg-type]
        assert match.mismatch(match.solve(model, "head_dim")) == 0


def test_a_hybrid_turns_the_mixers_that_have_the_knob() -> None:
    hybrid = replace(SOFTMAX, mixers=(Power(width=64, num_heads=4), Window(width=64, num_heads=4)))
    solved = Match.of(POWER, "state", context=CONTEXT).solve(hybrid, "window")
    assert solved.mixers[0] == hybrid.mixers[0]
    assert solved.mixers[1].window == 72


def test_what_misses_is_said() -> None:
    match = Match(quantity="state", target=10_000, context=CONTEXT)
    assert match.sentence(POWER) == "18,496 elements of state at context 512, +84.96% of the 10,000 asked"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Match(quantity="speed", target=1, context=1), "Match.quantity = 'speed': must be 'state' or"),
        (lambda: Match(quantity="state", target=0, context=1), "Match.target = 0: must be positive"),
        (
            lambda: Match(quantity="state", target=5, context=1).solve(POWER, "window"),
            "no mixer of power p=2 has a window",
        ),
        (lambda: Match(quantity="state", target=5, context=1).solve(POWER, "depth"), "knob = 'depth': must be one of"),
        (
            lambda: Match(quantity="parameters", target=5, context=9).solve(WINDOW, "window"),
            "window does not change the parameters of window-64",
        ),
    ],
)
def test_what_cannot_be_matched_is_refused_in_a_sentence(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
