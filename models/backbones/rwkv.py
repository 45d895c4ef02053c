"""RWKV-7's layer with the mixer left open: LayerNorms, token shifts and a squared-ReLU channel mix."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.models.backbones.base import Backbone
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers import MixerConfig


class LayerState(NamedTuple):
    """State of one layer: the mixer's, and the last inputs ``[B, 1, C]`` of the two token shifts."""

    mixer: Any
    mixer_input: Tensor
    channel_input: Tensor


@dataclass(frozen=True, kw_only=True)
class RWKV(Backbone):
    """``x + mixer(shift(norm(x)))``, then ``x + channel_mix(shift(norm(x)))`` (Peng et al., "RWKV-7 Goose", 2025).

    A token shift moves each channel a learned way from the token to the one before it; the channel mix is
    ``W_v relu(W_k x)²``. It is the backbone of most of the paper's experiments, with RWKV-7's own time mix exchanged
    for the mixer; one token shift before the mixer stands for the time mix's six.

    Attributes:
        hidden_ratio: hidden width of the channel mix over the width of the model.
    """

    hidden_ratio: float = 4.0

    def __post_init__(self) -> None:
        self.require(self.hidden_ratio > 0, "hidden_ratio", "positive")

    def build(self, mixer: MixerConfig, depth: float) -> "RWKVLayer":
        return RWKVLayer(mixer, self.hidden_width(mixer), depth)

    def hidden_width(self, mixer: MixerConfig) -> int:
        return round(self.hidden_ratio * mixer.width)

    def state_size(self, mixer: MixerConfig, context: int) -> StateSize:
        return mixer.state_size(context) + StateSize(2 * mixer.width, 2 * mixer.width)

    def flops_per_token(self, mixer: MixerConfig, context: int, *, causal: bool = True) -> Flops:
        channel_mix = 4.0 * mixer.width * self.hidden_width(mixer)
        return mixer.flops_per_token(context, causal=causal) + Flops(channel_mix, 0.0)


class RWKVLayer(nn.Module):
    """Module of :class:`RWKV`. As in RWKV-7, the channel mix starts at zero output and with small keys."""

    def __init__(self, mixer: MixerConfig, hidden: int, depth: float):
        super().__init__()
        width = mixer.width
        self.mixer_norm = nn.LayerNorm(width)
        self.mixer_shift = TokenShift(width, depth)
        self.mixer = mixer.build()
        self.channel_norm = nn.LayerNorm(width)
        self.channel_shift = TokenShift(width, depth)
        self.key_proj = nn.Linear(width, hidden, bias=False)
        self.value_proj = nn.Linear(hidden, width, bias=False)
        self.key_proj.weight.init_gain = 0.5 / 3**0.5  # type: ignore[attr-defined]
        self.value_proj.weight.init_gain = 0.0  # type: ignore[attr-defined]

    def forward(
        self, x: Tensor, state: LayerState | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, LayerState | None]:
        mixer_state, mixer_input, channel_input = state or (None, None, None)
        h, mixer_input = self.mixer_shift(self.mixer_norm(x), mixer_input)
        h, mixer_state = self.mixer(h, mixer_state, return_state=return_state)
        x = x + h
        h, channel_input = self.channel_shift(self.channel_norm(x), channel_input)
        x = x + self.value_proj(F.relu(self.key_proj(h)).square())
        return x, LayerState(mixer_state, mixer_input, channel_input) if return_state else None


class TokenShift(nn.Module):
    """``x_t + mix · (x_{t-1} - x_t)``, per channel; the first channels start with more of the token before.

    The start follows RWKV-7's channel mix, ``mix = 1 - (c / C)^((1 - depth)^4)`` for channel c of C.
    """

    def __init__(self, width: int, depth: float):
        super().__init__()
        channel = torch.arange(width) / width
        self.mix = nn.Parameter(1 - channel ** ((1 - depth) ** 4))

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shifted ``[B, T, C]``, and the last input ``[B, 1, C]``, which the next call takes as ``previous``."""
        previous = torch.zeros_like(x[:, :1]) if previous is None else previous
        shifted = torch.cat([previous, x[:, :-1]], dim=1)
        return x + self.mix * (shifted - x), x[:, -1:]
