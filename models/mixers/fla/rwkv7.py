"""RWKV-7's time mix."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.models.cost import StateSize
from icl_eval.models.mixers.base import MixerConfig
from icl_eval.models.mixers.fla.base import RecurrentConfig, RecurrentMixer, RecurrentState, wide_dtype

STRONGEST_LOG_DECAY = -math.exp(-0.5)
"""Bound of the log decay of a token; the kernels rely on it."""


def rank(width: int, factor: float) -> int:
    """The published rank of a low-rank projection: ``factor · sqrt(width)``, to a multiple of 32."""
    return max(32, round(factor * width**0.5 / 32) * 32)


@dataclass(frozen=True, kw_only=True)
class RWKV7(RecurrentConfig):
    """RWKV-7's time mix (Peng et al., arXiv 2503.14456): a decay a channel, and a state that forgets by direction.

    As its authors build it: six token shifts, low-rank decay, rate and output gate, a group norm, and a bonus for the
    token itself, all started as published; their heads are of 64.

    Attributes:
        value_residual: mix the values of the model's first RWKV-7 layer into those of the later ones. Where there are
            none to mix in, as in a layer on its own, it changes nothing.
    """

    value_residual: bool = True

    name: ClassVar[str] = "rwkv7"
    operator: ClassVar[str] = "fla.ops.rwkv7.chunk_rwkv7"
    shifts_tokens: ClassVar[bool] = True
    vector_decay: ClassVar[bool] = True
    delta: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.head_dim >= 2, "num_heads", "such that heads (width / num_heads) have a size of at least 2")

    @property
    def decay_rank(self) -> int:
        """Rank of the decay's and of the rate's projections."""
        return rank(self.width, 2.5 * self.head_dim / 64)

    @property
    def gate_rank(self) -> int:
        return rank(self.width, 5.0)

    @property
    def value_rank(self) -> int:
        """Rank of the projection that says how much of the first layer's values is mixed in."""
        return rank(self.width, 1.7 * self.head_dim / 64)

    @property
    def kept_inputs(self) -> StateSize:
        return StateSize.float32(self.width)

    def after(self, earlier: tuple[MixerConfig, ...]) -> "RWKV7":
        first = not any(isinstance(mixer, RWKV7) for mixer in earlier)
        return replace(self, value_residual=False) if first else self

    def weight_flops(self) -> float:
        ranks = 2 * self.decay_rank + self.gate_rank + (self.value_rank if self.value_residual else 0)
        return 2.0 * self.width * (4 * self.width + 2 * ranks)

    def build(self) -> "RWKV7Mixer":
        return RWKV7Mixer(self)


class LowRank(nn.Module):
    """``up(activation(down(x)))``, starting at zero, and at its bias if it has one."""

    def __init__(self, width: int, rank: int, activation: nn.Module, *, bias: bool = True):
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.activation = activation
        self.up = nn.Linear(rank, width, bias=bias)
        self.down.weight.init_gain = 0.0  # type: ignore[attr-defined]
        self.up.weight.init_orthogonal = True  # type: ignore[attr-defined]
        self.up.weight.init_gain = 0.1 * max(1.0, rank / width) ** 0.5  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))


class RWKV7Mixer(RecurrentMixer):
    """Module of :class:`RWKV7`."""

    config: RWKV7

    def __init__(self, config: RWKV7):
        super().__init__(config)
        width = config.width
        self.shift_r, self.shift_w, self.shift_k, self.shift_v, self.shift_a, self.shift_g = (
            nn.Parameter(torch.zeros(width)) for _ in range(6)
        )
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width, bias=False) for _ in range(4))
        for proj, gain in ((self.q_proj, 1.0), (self.k_proj, 0.1), (self.v_proj, 1.0), (self.out_proj, 0.0)):
            proj.weight.init_orthogonal = gain > 0  # type: ignore[attr-defined]
            proj.weight.init_gain = gain  # type: ignore[attr-defined]
        self.decay = LowRank(width, config.decay_rank, nn.Tanh())
        self.rate = LowRank(width, config.decay_rank, nn.Identity())
        self.value_rate = LowRank(width, config.value_rank, nn.Identity()) if config.value_residual else None
        self.output_gate = LowRank(width, config.gate_rank, nn.Sigmoid(), bias=False)
        self.key_scale = nn.Parameter(torch.zeros(width))
        self.key_rate = nn.Parameter(torch.full((width,), 1.02))
        self.bonus = nn.Parameter(torch.full((width,), -0.04))
        self.out_norm = nn.GroupNorm(config.num_heads, width, eps=1e-5 * config.head_dim)
        self.start_at_depth(0, 1)

    @torch.no_grad()
    def start_at_depth(self, layer: int, num_layers: int) -> None:
        width, head_dim = self.config.width, self.config.head_dim
        depth, remaining = layer / max(num_layers - 1, 1), 1 - layer / num_layers
        channel = torch.arange(width)
        line = channel / max(width - 1, 1)
        zigzag = 2 * (channel % head_dim) / (head_dim - 1) - 1
        zigzag = zigzag * zigzag.abs()
        starts = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        for name, exponent in starts.items():
            getattr(self, f"shift_{name}").copy_(1 - (channel / width) ** (exponent * remaining))
        self.decay.up.bias.copy_(-6 + 6 * line ** (1 + depth**0.3) + 0.5 + 2.5 * zigzag)
        self.rate.up.bias.copy_(-0.19 + 0.3 * zigzag + 0.4 * (line - 0.5))
        if self.value_rate is not None:
            self.value_rate.up.bias.copy_(0.73 - 0.4 * (line - 0.5))
        self.key_scale.copy_(0.71 - 0.1 * (line - 0.5))
        self.out_norm.weight.fill_(((layer + 1) / num_layers) ** 0.7)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, RecurrentState | None]:
        y, state, _ = self.mix(x, state, None, return_state=return_state)
        return y, state

    def mix(
        self, x: Tensor, state: RecurrentState | None, first_values: Tensor | None, *, return_state: bool
    ) -> tuple[Tensor, RecurrentState | None, Tensor]:
        heads = (self.config.num_heads, -1)
        previous = torch.zeros_like(x[:, :1]) if state is None or state.inputs is None else state.inputs.to(x.dtype)
        change = torch.cat([previous, x[:, :-1]], dim=1) - x
        q = self.q_proj(x + self.shift_r * change)
        k = self.k_proj(x + self.shift_k * change)
        shifted = x + self.shift_v * change
        v = self.v_proj(shifted)
        first_values = v if first_values is None else first_values
        if self.value_rate is not None:
            v = v + (first_values - v) * self.value_rate(shifted).sigmoid()
        wide = wide_dtype(x)
        log_decay = STRONGEST_LOG_DECAY * self.decay(x + self.shift_w * change).to(wide).sigmoid()
        rate = self.rate(x + self.shift_a * change).to(wide).sigmoid()
        direction = F.normalize((k.to(wide) * self.key_scale.to(wide)).unflatten(-1, heads), dim=-1)
        k = (k.to(wide) * (1 + (rate - 1) * self.key_rate.to(wide))).to(q.dtype)
        q, k, v, log_decay = (z.unflatten(-1, heads) for z in (q, k, v, log_decay))
        a, b = (-direction).to(q.dtype), (direction * rate.unflatten(-1, heads)).to(q.dtype)
        y, S = self.recur(
            q,
            k,
            v,
            log_decay,
            a,
            b,
            state=state,
            kernel=lambda chunk_rwkv7, **options: chunk_rwkv7(
                q,
                log_decay.to(q.dtype),
                k,
                v,
                a,
                b,
                scale=1.0,
                safe_gate=True,
                lower_bound=STRONGEST_LOG_DECAY,
                chunk_size=64,
                **options,
            ),
        )
        y = self.out_norm(y.flatten(-2).flatten(0, 1)).view_as(x)
        bonus = (q * k * self.bonus.to(q.dtype).unflatten(0, heads)).sum(-1, keepdim=True) * v
        y = self.out_proj((y + bonus.flatten(-2)) * self.output_gate(x + self.shift_g * change))
        if not return_state:
            return y, None, first_values
        state = RecurrentState(S, x[:, -1:].to(wide, copy=True), x.shape[1] + (0 if state is None else state.length))
        return y, state, first_values
