"""Declared costs against the tensors really held and the FLOPs really executed."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from icl_eval.kernels.recurrence import SCALAR_DECAY_CHUNK, VECTOR_DECAY_CHUNK
from icl_eval.models import (
    GLA,
    RWKV,
    RWKV7,
    Backbone,
    DeltaNet,
    GatedDeltaNet,
    Linear,
    Mamba2,
    MixerConfig,
    ModelConfig,
    Power,
    Softmax,
    Transformer,
    Window,
)

GEOMETRY = {"width": 32, "num_heads": 4}
MIXERS: dict[str, MixerConfig] = {
    "softmax": Softmax(**GEOMETRY),
    "softmax-grouped": Softmax(**GEOMETRY, num_kv_heads=2),
    "window": Window(**GEOMETRY, window=16),
    "linear": Linear(**GEOMETRY, chunk_size=16),
    "linear-ungated": Linear(**GEOMETRY, gated=False),
    "power-2": Power(**GEOMETRY, chunk_size=16),
    "power-2-grouped": Power(**GEOMETRY, num_kv_heads=1, chunk_size=16),
    "power-2-learned-rate": Power(**GEOMETRY, num_kv_heads=2, learned_rotary_rate=True, qk_norm=True),
    "rwkv7": RWKV7(**GEOMETRY),
    "gated_deltanet": GatedDeltaNet(**GEOMETRY),
    "mamba2": Mamba2(**GEOMETRY, state_dim=16),
    "gla": GLA(**GEOMETRY),
    "deltanet": DeltaNet(**GEOMETRY),
    "power-3": Power(**GEOMETRY, degree=3, normalization="none", chunk_size=16),
}
BACKBONES: dict[str, Backbone] = {
    "plain": Transformer(),
    "convolution-swiglu": Transformer(short_conv=4, activation="swiglu"),
    "rwkv": RWKV(),
}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)
every_mixer = pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)


@every_mixer
@every_backbone
def test_state_size_is_what_decoding_holds(mixer: MixerConfig, backbone: Backbone) -> None:
    config = ModelConfig(num_layers=2, mixers=(mixer,), backbone=backbone)
    model, state = config.build(), None
    for context, token in enumerate(torch.randint(0, 256, (40, 1)), start=1):
        _, state = model.step(token, state)
        held = sum(leaf.numel() for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor))
        assert held == model.state_size(context).stored, context


@every_mixer
@every_backbone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_state_bytes_are_what_prefill_and_decoding_keep(
    mixer: MixerConfig, backbone: Backbone, dtype: torch.dtype
) -> None:
    config = ModelConfig(num_layers=2, mixers=(mixer,), backbone=backbone)
    model = config.build()
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        _, state = model(torch.randint(0, 256, (1, 37)))
        for _ in range(3):
            tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
            storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
            assert sum(storages.values()) == config.state_size(37).bytes(dtype.itemsize)
            _, state = model.step(torch.tensor([1]), state)


@every_mixer
@every_backbone
def test_decode_flops_are_what_a_step_executes(mixer: MixerConfig, backbone: Backbone) -> None:
    context = 37
    config = ModelConfig(num_layers=2, mixers=(mixer,), backbone=backbone)
    model = config.build()
    with torch.no_grad():
        _, state = model(torch.randint(0, 256, (1, context - 1)))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model.step(torch.tensor([1]), state)
    declared = config.decode_flops(context)
    # In a step of power attention the update φ(k) vᵀ is an element-wise product, which the counter does not count.
    uncounted = sum(m.update_flops for m in config.layers if isinstance(m, Power | Mamba2))
    assert declared.total - uncounted == counter.get_total_flops()


@every_mixer
@every_backbone
def test_flops_are_what_the_forward_pass_executes(mixer: MixerConfig, backbone: Backbone) -> None:
    T = 64
    config = ModelConfig(num_layers=2, mixers=(mixer,), backbone=backbone)
    model = config.build()
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.nll(*torch.randint(0, 256, (2, 1, T)))
    # The counter does not know causality, and sees the blocks of the window mixer in full: each of its w queries is
    # multiplied with 2w keys, of which all but w are masked away.
    executed = counter.get_total_flops() / T + triangular_flops(mixer, T) * config.num_layers
    assert config.executed_flops_per_token(T).total == executed


def triangular_flops(mixer: MixerConfig, T: int) -> float:
    """FLOPs per token of the delta rule's triangular systems, of which the counter knows nothing."""
    if not isinstance(mixer, DeltaNet | RWKV7):
        return 0.0
    chunk = min(T, VECTOR_DECAY_CHUNK if mixer.vector_decay else SCALAR_DECAY_CHUNK)
    return mixer.num_heads * (chunk - 1) * (mixer.key_dim + mixer.value_dim)


@every_mixer
def test_causal_count_is_the_mean_over_positions(mixer: MixerConfig) -> None:
    T = 48
    pairs = {"softmax": range(1, T + 1), "window": [min(i, 16) for i in range(1, T + 1)]}
    if mixer.name in pairs:
        expected = 4 * mixer.width * sum(pairs[mixer.name]) / T
        assert mixer.flops_per_token(T).state == pytest.approx(expected)
    else:
        assert mixer.flops_per_token(T).state < mixer.flops_per_token(T, causal=False).state
    assert mixer.flops_per_token(T).weight == mixer.flops_per_token(T, causal=False).weight


def test_num_parameters_counts_the_model() -> None:
    for tied in (False, True):
        config = ModelConfig(mixers=(MIXERS["power-2"],), tied_embeddings=tied)
        assert config.num_parameters() == sum(p.numel() for p in config.build().parameters())


def test_hybrid_costs_add_up() -> None:
    window, power = MIXERS["window"], MIXERS["power-2"]
    hybrid = ModelConfig(num_layers=4, mixers=(power, window))
    pure = [replace(hybrid, mixers=(mixer,)) for mixer in hybrid.mixers]
    assert hybrid.state_size(100) * 2 == pure[0].state_size(100) + pure[1].state_size(100)
    assert (hybrid.flops_per_token(100) * 2).total == pytest.approx(sum(p.flops_per_token(100).total for p in pure))


def test_window_state_stops_growing() -> None:
    window = MIXERS["window"]
    assert window.state_size(16) == window.state_size(1_000_000)
    assert window.flops_per_token(100_000).state == pytest.approx(window.flops_per_token(200_000).state, rel=1e-3)
