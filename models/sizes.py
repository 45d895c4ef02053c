"""Named sizes: one line gives a model of a size around any mixer, backbone and context."""

import math
from dataclasses import replace
from typing import NamedTuple

from icl_eval.config import lookup
from icl_eval.models.backbones import Backbone, Transformer
from icl_eval.models.language_model import ModelConfig
from icl_eval.models.mixers import MixerConfig


class Size(NamedTuple):
    """Channels, layers and heads of a model; its heads are ``width / num_heads`` wide."""

    width: int
    num_layers: int
    num_heads: int


SIZES: dict[str, Size] = {
    "nano": Size(192, 6, 6),
    "micro": Size(384, 6, 6),
    "small": Size(768, 12, 12),
    "medium": Size(1024, 24, 16),
    "large": Size(1280, 36, 20),
}
"""The paper's small, medium and large (section 4; 85, 302 and 708 M parameters in a transformer's layers), and two for
runs at reduced scale: nano, 2.7 M with heads of 32, and micro, 10.6 M with heads of 64."""


def model_config(
    size: str,
    *mixers: MixerConfig,
    vocab_size: int,
    context: int,
    backbone: Backbone | None = None,
    tied_embeddings: bool = False,
) -> ModelConfig:
    """A model of a named size.

    ``model_config("small", Power(degree=2), vocab_size=50_304, context=65_536, backbone=RWKV())`` is an arm's model;
    several mixers make a hybrid, repeated in that order.

    Args:
        size: a key of :data:`SIZES`.
        mixers: their width and heads are set to the size's; where they have a rotary embedding, its base to
            :func:`rotary_base` of the context. Everything else stays as given.
        vocab_size: tokens of the vocabulary.
        context: tokens of the longest sequence that the model is to be trained on.
        backbone: the layer around the mixer; the transformer's if not given.
        tied_embeddings: use the embedding matrix as the head.

    Raises:
        ValueError: no such size, or it does not go with the mixers.
    """
    width, num_layers, num_heads = lookup(SIZES, size, "size")
    resized = (
        replace(
            mixer,
            width=width,
            num_heads=num_heads,
            rotary_base=None if mixer.rotary_base is None else rotary_base(context),
        )
        for mixer in mixers
    )
    return ModelConfig(
        vocab_size=vocab_size,
        num_layers=num_layers,
        mixers=tuple(resized),
        backbone=backbone or Transformer(),
        tied_embeddings=tied_embeddings,
    )


def rotary_base(context: int) -> float:
    """A base of the rotary embedding that suits a context (tokens), to two digits; at least the customary 10,000.

    It is the least base with which attention can still tell similar tokens apart at that distance, as fitted by Men et
    al., "Base of RoPE bounds context length" (2024): ``0.0424 · context^1.628``.

    Raises:
        ValueError: a context below 1.
    """
    if context < 1:
        raise ValueError(f"context = {context!r}: must be at least 1 token")
    bound = 0.0424 * context**1.628
    digit = 10.0 ** (math.floor(math.log10(bound)) - 1)
    return max(10_000.0, math.ceil(bound / digit) * digit)
