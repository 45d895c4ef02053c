"""Pre-norm transformer layer with the mixer left open."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.models.backbones.base import Backbone
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers import MixerConfig


class LayerState(NamedTuple):
    """State of one layer.

    Attributes:
        mixer: the mixer's own.
        conv: ``[B, short_conv - 1, C]``, the last inputs of the short convolution; ``None`` without one.
    """

    mixer: Any
    conv: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Transformer(Backbone):
    """``x + mixer(conv(norm(x)))``, then ``x + mlp(norm(x))``.

    Attributes:
        mlp_ratio: hidden width of the MLP over the width of the model.
        activation: ``"gelu"``, or ``"swiglu"`` (three matrices).
        short_conv: taps of a depth-wise causal convolution before the mixer; 0 for none. It shows each token its
            neighbours, without which in-context lookup takes far longer to be learned.
    """

    mlp_ratio: float = 4.0
    activation: Literal["gelu", "swiglu"] = "gelu"
    short_conv: int = 0

    def __post_init__(self) -> None:
        self.require(self.mlp_ratio > 0, "mlp_ratio", "positive")
        self.require(self.short_conv == 0 or self.short_conv >= 2, "short_conv", "0 (none) or at least 2 taps")

    def build(self, mixer: MixerConfig, layer: int, num_layers: int) -> "TransformerLayer":
        return TransformerLayer(self, mixer, layer, num_layers)

    def hidden_width(self, mixer: MixerConfig) -> int:
        return max(1, round(self.mlp_ratio * mixer.width))

    def state_size(self, mixer: MixerConfig, context: int) -> StateSize:
        conv = max(self.short_conv - 1, 0) * mixer.width
        return mixer.state_size(context) + StateSize.float32(conv)

    def flops_per_token(self, mixer: MixerConfig, context: int, *, causal: bool = True) -> Flops:
        matrices = 3 if self.activation == "swiglu" else 2
        mlp = 2.0 * matrices * mixer.width * self.hidden_width(mixer)
        conv = 2.0 * self.short_conv * mixer.width
        return mixer.flops_per_token(context, causal=causal) + Flops(mlp + conv, 0.0)


class TransformerLayer(nn.Module):
    """Module of :class:`Transformer`: ``[B, T, C]`` and a :class:`LayerState` in and out."""

    def __init__(self, config: Transformer, mixer: MixerConfig, layer: int, num_layers: int):
        super().__init__()
        width, hidden = mixer.width, config.hidden_width(mixer)
        self.config = config
        self.mixer_norm = nn.RMSNorm(width)
        self.conv = nn.Conv1d(width, width, config.short_conv, groups=width, bias=False) if config.short_conv else None
        self.mixer = mixer.build()
        self.mixer.start_at_depth(layer, num_layers)
        self.mlp_norm = nn.RMSNorm(width)
        self.gate_up_proj = nn.Linear(width, hidden * (2 if config.activation == "swiglu" else 1), bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        x: Tensor,
        state: LayerState | None = None,
        first_values: Tensor | None = None,
        *,
        return_state: bool = True,
    ) -> tuple[Tensor, LayerState | None, Tensor | None]:
        mixer_state, conv_state = state or (None, None)
        h, conv_state = self._convolve(self.mixer_norm(x), conv_state)
        h, mixer_state, first_values = self.mixer.mix(h, mixer_state, first_values, return_state=return_state)
        x = x + h
        h = self.gate_up_proj(self.mlp_norm(x))
        if self.config.activation == "swiglu":
            gate, up = h.chunk(2, dim=-1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h)
        state = LayerState(mixer_state, conv_state) if return_state else None
        return x + self.down_proj(h), state, first_values

    def _convolve(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if self.conv is None:
            return x, None
        taps = self.config.short_conv
        past = x.new_zeros(x.shape[0], taps - 1, x.shape[2]) if past is None else past
        x = torch.cat([past, x], dim=1)
        return self.conv(x.transpose(1, 2)).transpose(1, 2), x[:, 1 - taps :].clone()
