"""RWKV-7's block: its start, as its authors publish it, and its channel mix and shifts against the formulae."""

import torch
from torch.nn import functional as F

from icl_eval.models import RWKV, ModelConfig, Power, Softmax, Transformer
from icl_eval.models.backbones.rwkv import RWKVLayer

MIXER = Softmax(width=32, num_heads=4)


def test_shifts_start_as_published() -> None:
    num_layers = 4
    channel = torch.arange(32) / 32
    for number in range(num_layers):
        layer = RWKV().build(MIXER, number, num_layers)
        remaining = 1 - number / num_layers
        torch.testing.assert_close(layer.mixer_shift.mix, 1 - channel ** (0.7 * remaining))
        torch.testing.assert_close(layer.channel_shift.mix, 1 - channel ** (remaining**4))


def test_model_starts_as_rwkv_7() -> None:
    model = ModelConfig(vocab_size=300, num_layers=2, mixers=(MIXER,), backbone=RWKV()).build()
    assert isinstance(model.norm, torch.nn.LayerNorm)
    assert [isinstance(layer.embedding_norm, torch.nn.LayerNorm) for layer in model.layers] == [True, False]
    assert model.embedding.weight.std() < 1e-4
    torch.testing.assert_close(model.head.weight.std(), torch.tensor(0.5 / 32**0.5), rtol=0.05, atol=0)
    for layer in model.layers:
        assert not layer.value_proj.weight.any()
        torch.testing.assert_close(layer.key_proj.weight.std(), torch.tensor(0.5 / 96**0.5), rtol=0.1, atol=0)
    tied = ModelConfig(vocab_size=300, mixers=(MIXER,), backbone=RWKV(), tied_embeddings=True).build()
    torch.testing.assert_close(tied.embedding.weight.std(), torch.tensor(0.02), rtol=0.05, atol=0)


def test_layer_is_what_the_formula_says() -> None:
    layer: RWKVLayer = RWKV().build(MIXER, 1, 4)
    torch.nn.init.normal_(layer.value_proj.weight)
    x = torch.randn(2, 7, 32)
    y, _, first_values = layer(x)
    assert first_values is None

    def shifted(h: torch.Tensor, mix: torch.Tensor) -> torch.Tensor:
        before = F.pad(h, (0, 0, 1, 0))[:, :-1]
        return (1 - mix) * h + mix * before

    x = x + layer.mixer(shifted(layer.mixer_norm(x), layer.mixer_shift.mix))[0]
    h = shifted(layer.channel_norm(x), layer.channel_shift.mix)
    expected = x + F.relu(h @ layer.key_proj.weight.T) ** 2 @ layer.value_proj.weight.T
    torch.testing.assert_close(y, expected)


def test_what_a_long_prefill_leaves_behind_is_small() -> None:
    for backbone in (RWKV(), Transformer(short_conv=4)):
        model = ModelConfig(mixers=(Power(),), backbone=backbone).build()
        _, state = model(torch.randint(0, 256, (1, 500)))
        for layer_state in state:
            for tensor in layer_state[1:]:
                if tensor is not None:
                    assert tensor.untyped_storage().nbytes() == tensor.nbytes
