"""The paper's two tables of arithmetic, computed by the accounting code, with the paper's own figures."""

from icl_eval.kernels import expanded_dim
from icl_eval.models import Flops, Linear, MixerConfig, ModelConfig, Softmax, Window

WSFR_CONTEXTS = (1024, 8192, 65_536, 1_000_000)
WSFR_MIXERS: dict[str, MixerConfig] = {
    "exponential": Softmax(width=768, num_heads=12),
    "linear": Linear(width=768, num_heads=12, gated=False, chunk_size=128),
    "window-8192": Window(width=768, num_heads=12, window=8192),
}
PAPER_WSFR = {
    "exponential": (8.0, 1.0, 1 / 8, 1 / 125),
    "linear": (30.0, 30.0, 30.0, 30.0),
    "window-8192": (8.0, 1.0, 1.0, 1.0),
}
"""Weight:state FLOP ratios of a 124 M GPT-2 (paper section 3, Table 2), rounded as there."""
PAPER_STATE = {
    2: (4096, 2080),
    3: (262_144, 45_760),
    4: (16_777_216, 766_480),
    5: (1_073_741_824, 10_424_128),
    6: (68_719_476_736, 119_877_472),
}
"""Rows D of a power-attention state at head size 64 by degree (paper section 2, Table 3): tpow and spow."""


def wsfr(mixer: MixerConfig, context: int, *, causal: bool) -> Flops:
    """Forward FLOPs per token of the 124 M GPT-2 with this mixer."""
    model = ModelConfig(vocab_size=50_257, num_layers=12, mixers=(mixer,), tied_embeddings=True)
    return model.flops_per_token(context, causal=causal)


def recurrent_linear_flops() -> Flops:
    """The same model with linear attention, one token at a time: a state of 64 × 64 a head, updated and queried."""
    return Flops(wsfr(Linear(width=768, num_heads=12, gated=False), 1, causal=True).weight, 12 * 12 * 4.0 * 64 * 64)


def state_rows(degree: int, head_dim: int = 64) -> tuple[int, int]:
    """Rows of a head's state: all monomials (tpow), and the distinct ones (spow)."""
    return expanded_dim(head_dim, degree, "tpow"), expanded_dim(head_dim, degree, "spow")
