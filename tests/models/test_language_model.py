"""One model, three uses: whole sequences, prefill and decoding; and what its configs refuse."""

import pytest
import torch
from torch.utils._pytree import tree_leaves

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
    """A float64 model; matrices that start at zero are drawn, since what they switch off could not fail."""
    model = ModelConfig(vocab_size=50, num_layers=2, mixers=(mixer,), backbone=backbone).build().double()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return model


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
    monkeypatch.setattr("icl_eval.models.losses.CHUNK_TOKENS", chunk)
    model = build(VARIANTS["softmax"])
    tokens, targets = torch.randint(0, 50, (2, 3, 11))
    logits, _ = model(tokens)
    nll, correct = model.nll(tokens, targets)
    expected = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(nll, expected)
    assert torch.equal(correct, logits.argmax(-1) == targets)


@pytest.mark.parametrize("chunk", [7, 10_000])
@pytest.mark.parametrize("tied", [False, True])
def test_the_loss_is_the_weighted_sum_with_its_gradients(
    chunk: int, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("icl_eval.models.losses.CHUNK_TOKENS", chunk)
    model = ModelConfig(vocab_size=50, mixers=(VARIANTS["softmax"],), tied_embeddings=tied).build().double()
    tokens, targets = torch.randint(0, 50, (2, 3, 11))
    weights = torch.rand(3, 11, dtype=torch.float64)
    expected = (model.nll(tokens, targets)[0] * weights).sum()
    loss = model.loss(tokens, targets, weights)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(3 * loss, parameters)
    for gradient, wanted in zip(gradients, torch.autograd.grad(3 * expected, parameters), strict=True):
        torch.testing.assert_close(gradient, wanted)


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
    almost_greedy = torch.stack(list(model.generate(prompt, 6, temperature=1e-40)))
    assert torch.equal(almost_greedy, torch.stack(list(model.generate(prompt, 6))))
    with pytest.raises(ValueError, match=r"tokens have shape \[2, 0\]: must be \[B, T\] with T at least 1"):
        next(model.generate(prompt[:, :0], 1))
    with pytest.raises(ValueError, match="temperature = -1: must be at least 0"):
        next(model.generate(prompt, 1, temperature=-1))


def storage_bytes(state: tuple) -> int:
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@every_mixer
def test_generation_keeps_memory_constant_unless_the_mixer_is_softmax(
    mixer: MixerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, held = build(mixer).float(), []
    step = model.step
    monkeypatch.setattr(model, "step", lambda token, state: (held.append(storage_bytes(state)), step(token, state))[1])
    assert len(list(model.generate(torch.randint(0, 50, (1, 20)), 100))) == 100
    if mixer.name == "softmax":
        assert [held[0], held[-1]] == [model.state_size(n).bytes(4) for n in (20, 119)]
    else:
        assert len(set(held)) == 1


def test_kv_cache_moves_a_logarithmic_number_of_times() -> None:
    mixer, state, buffers = VARIANTS["softmax"].build(), None, set()
    with torch.no_grad():
        for _ in range(500):
            _, state = mixer.step(torch.randn(1, 32), state)
            buffers.add(state.k.data_ptr())
    assert len(buffers) <= 6


@pytest.mark.parametrize("gradients", [True, False], ids=["autograd", "no_grad"])
def test_two_continuations_of_one_state_do_not_touch_each_other(gradients: bool) -> None:
    model, tokens = build(VARIANTS["softmax"]), torch.randint(0, 50, (3, 1, 5))
    with torch.set_grad_enabled(gradients):
        _, state = model(tokens[0])
        first, first_state = model(tokens[1], state)
        second, _ = model(tokens[2], state)
        for branch, logits in ((1, first), (2, second)):
            whole, _ = model(torch.cat([tokens[0], tokens[branch]], dim=1))
            torch.testing.assert_close(logits, whole[:, 5:])
        torch.testing.assert_close(model(tokens[2], first_state)[0], model(torch.cat([*tokens], dim=1))[0][:, 10:])


def test_learned_rotary_rate_starts_as_the_plain_embedding_and_then_turns_on() -> None:
    tokens = torch.randint(0, 50, (2, 20))
    learned = ModelConfig(vocab_size=50, mixers=(Power(learned_rotary_rate=True),)).build().double()
    plain = ModelConfig(vocab_size=50, mixers=(Power(),)).build().double()
    torch.testing.assert_close(learned(tokens)[0], plain(tokens)[0], rtol=0, atol=1e-6)
    for layer in learned.layers:
        torch.nn.init.normal_(layer.mixer.rate_proj.weight)
    assert not torch.allclose(learned(tokens)[0], plain(tokens)[0], atol=1e-4)


def test_a_hybrid_of_power_power_window_is_one_model() -> None:
    geometry = {"width": 32, "num_heads": 4}
    mixers = (Power(**geometry), Power(**geometry), Window(**geometry, window=8))
    config = ModelConfig(vocab_size=50, num_layers=6, mixers=mixers, backbone=BACKBONES["rwkv"])
    assert config.label == "power p=2 + window-8"
    assert [mixer.label for mixer in config.layers] == ["power p=2", "power p=2", "window-8"] * 2
    model, tokens = config.build().double(), torch.randint(0, 50, (1, 30))
    prefill, state = model(tokens[:, :29])
    last, state = model.step(tokens[:, 29], state)
    torch.testing.assert_close(torch.cat([prefill, last[:, None]], dim=1), model(tokens)[0])
    assert [type(layer.mixer).__name__ for layer in state] == ["PowerState", "PowerState", "WindowCache"] * 2
    assert storage_bytes(state) == 2 * config.state_size(30).bytes(4)


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
