"""RWKV-7's layer with the mixer left open: LayerNorms, token shifts and a squared-ReLU channel mix."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.models.backbones.base import Backbone
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers import MixerConfig


class LayerState(NamedTuple):
    """State of one layer: the mixer's, and the last inputs ``[B, 1, C]`` of the two token shifts.

    A mixer with token shifts of its own (RWKV-7's) has no shift before it, and no ``mixer_input``.
    """

    mixer: Any
    mixer_input: Tensor | None
    channel_input: Tensor


@dataclass(frozen=True, kw_only=True)
class RWKV(Backbone):
    """``x + mixer(shift(norm(x)))``, then ``x + channel_mix(shift(norm(x)))`` (Peng et al., "RWKV-7 Goose", 2025).

    A token shift moves each channel a learned way from the token to the one before it; the channel mix is
    ``W_v relu(W_k x)²``. It is the backbone of most of the paper's experiments, with RWKV-7's own time mix exchanged
    for the mixer. As in RWKV-7, norms are LayerNorms, with one more on the embeddings; the embedding starts near zero
    (unless tied), the head at half the usual scale, and the channel mix at zero output.

    Where it is not RWKV-7: the time mix's six token shifts are one, with the start of its keys and values, for mixers
    that have none of their own (``rwkv7`` has, and stands here as its authors' whole layer); and the time mix's
    output gate, group norm and value residual belong to ``rwkv7`` alone.

    Attributes:
        hidden_ratio: hidden width of the channel mix over the width of the model.
    """

    norm: ClassVar[type[nn.RMSNorm] | type[nn.LayerNorm]] = nn.LayerNorm
    embedding_std: ClassVar[float] = 1e-4 / 3**0.5
    head_gain: ClassVar[float] = 0.5

    hidden_ratio: float = 4.0

    def __post_init__(self) -> None:
        self.require(self.hidden_ratio > 0, "hidden_ratio", "positive")

    def build(self, mixer: MixerConfig, layer: int, num_layers: int) -> "RWKVLayer":
        return RWKVLayer(mixer, self.hidden_width(mixer), layer, num_layers)

    def hidden_width(self, mixer: MixerConfig) -> int:
        return max(1, round(self.hidden_ratio * mixer.width))

    def state_size(self, mixer: MixerConfig, context: int) -> StateSize:
        shifts = mixer.width * (1 if mixer.shifts_tokens else 2)
        return mixer.state_size(context) + StateSize.float32(shifts)

    def flops_per_token(self, mixer: MixerConfig, context: int, *, causal: bool = True) -> Flops:
        channel_mix = 4.0 * mixer.width * self.hidden_width(mixer)
        return mixer.flops_per_token(context, causal=causal) + Flops(channel_mix, 0.0)


class RWKVLayer(nn.Module):
    """Module of :class:`RWKV`."""

    def __init__(self, mixer: MixerConfig, hidden: int, layer: int, num_layers: int):
        super().__init__()
        width, remaining = mixer.width, 1 - layer / num_layers
        self.embedding_norm = nn.LayerNorm(width) if layer == 0 else nn.Identity()
        self.mixer_norm = nn.LayerNorm(width)
        self.mixer_shift = None if mixer.shifts_tokens else TokenShift(width, 0.7 * remaining)
        self.mixer = mixer.build()
        self.mixer.start_at_depth(layer, num_layers)
        self.channel_norm = nn.LayerNorm(width)
        self.channel_shift = TokenShift(width, remaining**4)
        self.key_proj = nn.Linear(width, hidden, bias=False)
        self.value_proj = nn.Linear(hidden, width, bias=False)
        self.key_proj.weight.init_gain = 0.5 / 3**0.5  # type: ignore[attr-defined]
        self.value_proj.weight.init_gain = 0.0  # type: ignore[attr-defined]

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        first_values: Tensor | None = None,
        *,
        return_state: bool = True,
    ) -> tuple[Tensor, LayerState | None, Tensor | None]:
        mixer_state, mixer_input, channel_input = state or (None, None, None)
        x = self.embedding_norm(x)
        h = self.mixer_norm(x)
        if self.mixer_shift is not None:
            h, mixer_input = self.mixer_shift(h, mixer_input)
        h, mixer_state, first_values = self.mixer.mix(h, mixer_state, first_values, return_state=return_state)
        x = x + h
        h, channel_input = self.channel_shift(self.channel_norm(x), channel_input)
        x = x + self.value_proj(F.relu(self.key_proj(h)).square())
        return x, LayerState(mixer_state, mixer_input, channel_input) if return_state else None, first_values


class TokenShift(nn.Module):
    """``x_t + mix · (x_{t-1} - x_t)``, per channel; the first channels start with more of the token before.

    The start is RWKV-7's, ``mix = 1 - (c / C)^exponent`` for channel c of C, with an exponent that falls with depth.
    """

    def __init__(self, width: int, exponent: float):
        super().__init__()
        self.mix = nn.Parameter(1 - (torch.arange(width) / width) ** exponent)

    def forward(self, x: Tensor, previous: Tensor | None) -> tuple[Tensor, Tensor]:
        """Shifted ``[B, T, C]``, and the last input ``[B, 1, C]``, which the next call takes as ``previous``."""
        return x + self.mix * (shift(x, previous) - x), x[:, -1:].clone()


def shift(x: Tensor, previous: Tensor | None) -> Tensor:
    """Each token's predecessor: ``[B, T, C]``, the first one being ``previous`` ``[B, 1, C]``, or zeros."""
    previous = torch.zeros_like(x[:, :1]) if previous is None else previous.to(x.dtype)
    return torch.cat([previous, x[:, :-1]], dim=1)
