"""One model, three uses: whole sequences, prefill and decoding; and what its configs refuse."""

import pytest
import torch

from icl_eval.models import (
    MIXERS,
    Backbone,
    LanguageModel,
    Linear,
    MixerConfig,
    ModelConfig,
    Power,
    Softmax,
    Transformer,
    Window,
)
from tests.models.test_costs import BACKBONES, GEOMETRY, every_backbone, every_mixer
from tests.models.test_costs import MIXERS as VARIANTS


def build(mixer: MixerConfig, backbone: Backbone = BACKBONES["convolution-swiglu"]) -> LanguageModel:
    return ModelConfig(vocab_size=50, num_layers=2, mixers=(mixer,), backbone=backbone).build().double()


@every_mixer
@every_backbone
@pytest.mark.parametrize("cut", [1, 16, 33])
def test_prefill_and_decode_equal_the_forward_pass(mixer: MixerConfig, backbone: Backbone, cut: int) -> None:
    model, tokens = build(mixer, backbone), torch.randint(0, 50, (2, 41), generator=torch.Generator().manual_seed(cut))
    whole, _ = model(tokens)
    prefill, state = model(tokens[:, :cut])
    middle, state = model(tokens[:, cut:37], state)
    parts = [prefill, middle]
    for t in range(37, 41):
        logits, state = model.step(tokens[:, t], state)
        parts.append(logits[:, None])
    assert (torch.cat(parts, dim=1) - whole).norm() / whole.norm() < 1e-8


@every_mixer
def test_no_output_depends_on_later_tokens(mixer: MixerConfig) -> None:
    model, tokens = build(mixer), torch.randint(0, 50, (1, 40))
    other = tokens.clone()
    other[:, 25:] = (other[:, 25:] + 7) % 50
    before, after = model(tokens)[0], model(other)[0]
    torch.testing.assert_close(before[:, :25], after[:, :25])
    assert not torch.allclose(before[:, 25:], after[:, 25:])


def test_window_equals_dense_attention_with_a_band_mask() -> None:
    model = Window(**GEOMETRY, window=7, rotary_base=None).build().double()
    q, k, v = torch.randn(3, 2, 30, 4, 8, dtype=torch.float64)
    y, _ = model.attend(torch.empty(0), q, k, v, None, False)
    scores = torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5
    t = torch.arange(30)
    outside = (t > t[:, None]) | (t <= t[:, None] - 7)
    weights = scores.masked_fill(outside, float("-inf")).softmax(-1)
    torch.testing.assert_close(y, torch.einsum("bhts,bshd->bthd", weights, v))


def test_a_window_longer_than_the_sequence_is_full_attention() -> None:
    tokens = torch.randint(0, 50, (2, 20))
    torch.testing.assert_close(build(Window(**GEOMETRY, window=64))(tokens)[0], build(Softmax(**GEOMETRY))(tokens)[0])


def test_arms_of_equal_seed_start_equal() -> None:
    softmax, power = (dict(build(mixer).named_parameters()) for mixer in (VARIANTS["softmax"], VARIANTS["power-2"]))
    assert softmax.keys() < power.keys()
    assert all(torch.equal(parameter, power[name]) for name, parameter in softmax.items())
    other = ModelConfig(vocab_size=50, mixers=(VARIANTS["softmax"],)).build(seed=1).double()
    assert not torch.equal(other.embedding.weight, softmax["embedding.weight"])


@pytest.mark.parametrize("chunk", [7, 10_000])
def test_nll_is_the_log_softmax_of_the_logits(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("icl_eval.models.language_model.NLL_CHUNK_TOKENS", chunk)
    model = build(VARIANTS["softmax"])
    tokens, targets = torch.randint(0, 50, (2, 3, 11))
    logits, _ = model(tokens)
    nll, correct = model.nll(tokens, targets)
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(nll, expected)
    assert torch.equal(correct, logits.argmax(-1) == targets)
    (gradient,) = torch.autograd.grad(nll.sum(), model.head.weight)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), model.head.weight)
    torch.testing.assert_close(gradient, expected_gradient)


def test_generation_follows_the_likeliest_tokens_and_its_seed() -> None:
    model, prompt = build(VARIANTS["power-2"]), torch.randint(0, 50, (2, 5))
    sequence = prompt
    for token in model.generate(prompt, 6):
        assert torch.equal(token, model(sequence)[0][:, -1].argmax(-1))
        sequence = torch.cat([sequence, token[:, None]], dim=1)
    assert sequence.shape == (2, 11)
    draw = [torch.stack(list(model.generate(prompt, 20, temperature=1.0, seed=seed))) for seed in (0, 0, 1)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    with pytest.raises(ValueError, match="prompt is empty"):
        next(model.generate(prompt[:, :0], 1))


def test_registry_and_defaults() -> None:
    assert set(MIXERS) >= {"softmax", "window", "linear", "power"}
    for name, config in MIXERS.items():
        assert config.name == name
        module = config().build()
        assert module.state_size(100) == config().state_size(100)
        assert module.flops_per_token(100) == config().flops_per_token(100)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Softmax(width=64, num_heads=3), r"Softmax.num_heads = 3: must be a divisor of width = 64"),
        (
            lambda: Softmax(width=64, num_heads=4, num_kv_heads=3),
            r"num_kv_heads = 3: must be a divisor of num_heads = 4",
        ),
        (lambda: Power(degree=3), r"Power.degree = 3: must be even with normalization = 'row_sum'"),
        (lambda: Power(normalization="rowsum"), r"normalization = 'rowsum': must be 'row_sum' or 'none'"),
        (lambda: Linear(degree=2), r"Linear.degree = 2: must be 1"),
        (lambda: Window(window=0), r"Window.window = 0: must be at least 1"),
        (lambda: Transformer(activation="relu"), r"activation = 'relu': must be 'gelu' or 'swiglu'"),
        (
            lambda: ModelConfig(num_layers=3, mixers=(Softmax(), Power())),
            r"num_layers = 3: must be a multiple of the 2",
        ),
        (lambda: ModelConfig(mixers=(Softmax(width=32), Softmax(width=64))), r"mixers = .*: must be of one width"),
    ],
)
def test_impossible_models_are_refused_in_a_sentence(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]
