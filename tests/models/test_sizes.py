"""Named sizes: the paper's dimensions, parameters where they should be, and a rotary base that follows the context."""

import pytest

from icl_eval.models import MIXERS, RWKV, SIZES, Power, Softmax, Transformer, Window, model_config, rotary_base

MILLIONS = {"nano": (1, 5), "micro": (10, 30), "small": (80, 90), "medium": (295, 310), "large": (700, 715)}
"""Least and most parameters of the layers, without embedding and head."""


@pytest.mark.parametrize("size", SIZES)
def test_layers_have_the_parameters_a_size_promises(size: str) -> None:
    config = model_config(size, Softmax(), vocab_size=256, context=1024)
    layers = config.num_parameters() - 2 * 256 * config.width
    low, high = MILLIONS[size]
    assert low * 1e6 <= layers <= high * 1e6
    assert config.mixers[0].head_dim in (32, 64)


def test_small_with_the_gpt2_vocabulary_is_the_papers_124_m_model() -> None:
    config = model_config("small", Softmax(), vocab_size=50_257, context=1024, tied_embeddings=True)
    assert config.num_parameters() == pytest.approx(124e6, rel=0.01)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("backbone", [Transformer(activation="swiglu"), RWKV()], ids=["transformer", "rwkv"])
def test_every_size_takes_every_mixer_in_every_backbone(size: str, mixer: str, backbone: object) -> None:
    config = model_config(size, MIXERS[mixer](), vocab_size=256, context=4096, backbone=backbone)  # type: ignore[arg-type]
    assert (config.width, config.num_layers, config.mixers[0].num_heads) == SIZES[size]
    assert config.flops_per_token(4096).total > 0
    assert config.num_parameters() > 0


def test_mixers_keep_what_the_size_does_not_say() -> None:
    config = model_config("nano", Power(degree=4, qk_norm=True), Power(), Window(window=7), vocab_size=99, context=64)
    assert [mixer.name for mixer in config.layers] == ["power", "power", "window"] * 2
    assert (config.mixers[0].degree, config.mixers[0].qk_norm, config.mixers[2].window) == (4, True, 7)
    without = model_config("nano", Softmax(rotary_base=None), vocab_size=99, context=100_000)
    assert without.mixers[0].rotary_base is None


def test_rotary_base_is_above_the_published_bounds() -> None:
    bounds = {1024: 4.3e3, 4096: 2.7e4, 16_384: 3.1e5, 65_536: 2.1e6}
    for context, bound in bounds.items():
        assert bound <= rotary_base(context) < 3 * max(bound, 1e4)
    assert model_config("small", Softmax(), vocab_size=9, context=65_536).mixers[0].rotary_base == rotary_base(65_536)


def test_wrong_sizes_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"unknown size 'tiny'; .*Allowed: large, medium, micro, nano, small"):
        model_config("tiny", Softmax(), vocab_size=9, context=64)
    with pytest.raises(ValueError, match="context = 0: must be at least 1 token"):
        rotary_base(0)
