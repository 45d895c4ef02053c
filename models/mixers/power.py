"""Power attention: a state of adjustable size through the degree of its kernel."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.kernels import expanded_dim, power_attention, power_attention_flops, power_attention_step
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers.base import Mixer, MixerConfig
from icl_eval.models.mixers.rotary import rotary_table, rotate


class PowerState(NamedTuple):
    """Float32 state of power attention, in the one canonical order, after ``length`` tokens.

    Attributes:
        S: ``[B, Hk, D_spow, V]``, the sum of ``φ(k) vᵀ``.
        z: ``[B, Hk, D_spow]``, the sum of ``φ(k)``; ``None`` without row-sum normalisation.
        length: tokens seen.
        position: ``[B, Hk]`` in float64, where the last token stands, with a learned rotary rate; else ``None``.
    """

    S: Tensor
    z: Tensor | None
    length: int
    position: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Power(MixerConfig):
    """Power attention of degree p (paper section 2): weights ``(q·k)^p``, gated per head.

    With grouped heads the queries of a group read one state, which has one gate and one rotary rate.

    Attributes:
        degree: p; the state holds ``C(head_dim + p - 1, p)`` rows a head.
        normalization: ``"row_sum"`` divides by the sum of the weights (even degrees, as in the paper); ``"none"``
            leaves the weights signed and normalises the output of each head instead (RMS, learned scale): any degree.
        gated: a learned, data-dependent forgetting factor ``sigmoid(w·x + b)`` per key-value head and token.
        gate_timescale_tokens: shortest and longest memory of the heads at initialisation, log-spaced over the heads.
        learned_rotary_rate: let each head and token say how far to move on, by ``1 + tanh(w·x)`` positions in place of
            one, as in the conformal transformation of sympow (arXiv 2503.03269); it starts at one.
        chunk_size: tokens a chunk in the chunked form; ``None`` takes the kernels' default.
    """

    name: ClassVar[str] = "power"

    degree: int = 2
    normalization: Literal["row_sum", "none"] = "row_sum"
    gated: bool = True
    gate_timescale_tokens: tuple[float, float] = (64.0, 4096.0)
    learned_rotary_rate: bool = False
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.degree >= 1, "degree", "at least 1")
        self.require(
            self.normalization == "none" or self.degree % 2 == 0,
            "degree",
            "even with normalization = 'row_sum', whose weights must not be negative; use normalization = 'none'",
        )
        low, high = self.gate_timescale_tokens
        self.require(
            1 <= low <= high, "gate_timescale_tokens", "a pair (shortest, longest) with 1 <= shortest <= longest"
        )
        self.require(
            self.rotary_base is not None or not self.learned_rotary_rate,
            "learned_rotary_rate",
            "False with rotary_base = None: there is nothing to turn",
        )
        self.require(self.chunk_size is None or self.chunk_size >= 1, "chunk_size", "None or at least 1")

    @property
    def label(self) -> str:
        return f"power p={self.degree}"

    @property
    def expanded_dim(self) -> int:
        """D, the rows of one head's state."""
        return expanded_dim(self.head_dim, self.degree, "spow")

    def build(self) -> "PowerMixer":
        return PowerMixer(self)

    def state_size(self, context: int) -> StateSize:
        size = StateSize.float32(self.kv_heads * self.expanded_dim * self._columns)
        if self.learned_rotary_rate:
            size += StateSize(self.kv_heads, self.kv_heads, self.kv_heads, 8 * self.kv_heads)
        return size

    def decode_state_flops(self, context: int) -> float:
        return self.update_flops + 2.0 * self.num_heads * self.expanded_dim * self._columns

    @property
    def update_flops(self) -> float:
        """FLOPs of adding one token to the state: of ``φ(k) vᵀ`` and ``φ(k)``."""
        return 2.0 * self.kv_heads * self.expanded_dim * self._columns

    @property
    def _columns(self) -> int:
        """Columns of one head's state, the normaliser included."""
        return self.head_dim + (self.normalization == "row_sum")

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        state = self.num_heads * power_attention_flops(
            context,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            degree=self.degree,
            chunk_size=self.chunk_size,
            normalization=self.normalization,
            causal=causal,
            kv_groups=self.num_heads // self.kv_heads,
        )
        per_head = 2.0 * self.width * self.kv_heads * (self.gated + self.learned_rotary_rate)
        return Flops(self._projection_flops() + per_head, state / context)


class PowerMixer(Mixer):
    """Module of :class:`Power`."""

    config: Power

    def __init__(self, config: Power):
        super().__init__(config)
        self.out_norm = nn.RMSNorm(config.head_dim) if config.normalization == "none" else nn.Identity()
        if config.gated:
            self.gate_proj = nn.Linear(config.width, config.kv_heads)
            self.gate_proj.weight.init_gain = 0.0  # type: ignore[attr-defined]
            with torch.no_grad():
                low, high = map(math.log, config.gate_timescale_tokens)
                spread = torch.linspace(low, high, config.kv_heads)
                self.gate_proj.bias.copy_(spread if config.kv_heads > 1 else spread.new_full((1,), (low + high) / 2))
        if config.learned_rotary_rate:
            self.rate_proj = nn.Linear(config.width, config.kv_heads, bias=False)
            self.rate_proj.weight.init_gain = 0.0  # type: ignore[attr-defined]

    def rotate(self, x: Tensor, q: Tensor, k: Tensor, state: PowerState | None) -> tuple[Tensor, Tensor]:
        if self.config.learned_rotary_rate:
            return q, k  # by attend, which keeps the positions
        return super().rotate(x, q, k, state)

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: PowerState | None, return_state: bool
    ) -> tuple[Tensor, PowerState | None]:
        config, T, position = self.config, q.shape[1], None
        if config.learned_rotary_rate:
            assert config.rotary_base is not None
            position = self._positions(x, state)
            table = rotary_table(
                position, config.head_dim, config.rotary_base, torch.promote_types(q.dtype, torch.float32)
            )
            k = rotate(k, *table)
            q = rotate(q, *(part.repeat_interleave(q.shape[2] // k.shape[2], dim=-2) for part in table))
            position = position[:, -1].clone()
        log_g = self._log_gates(x) if config.gated else None
        length = T if state is None else T + state.length
        inner = None if state is None else (state.S, state.z)
        if T == 1 and return_state:
            gate = None if log_g is None else log_g[:, 0]
            y, (S, z) = power_attention_step(
                q[:, 0], k[:, 0], v[:, 0], gate, inner, degree=config.degree, normalization=config.normalization
            )
            return self.out_norm(y[:, None]), PowerState(S, z, length, position)
        result = power_attention(
            q,
            k,
            v,
            log_g,
            degree=config.degree,
            normalization=config.normalization,
            chunk_size=config.chunk_size,
            initial_state=inner,
            return_state=return_state,
        )
        if not return_state:
            return self.out_norm(result), None
        y, (S, z) = result
        return self.out_norm(y), PowerState(S, z, length, position)

    def _log_gates(self, x: Tensor) -> Tensor:
        """Log gates ``[B, T, Hk]`` in float32 or wider: half precision would quantise long memories."""
        return F.logsigmoid(_wide_linear(self.gate_proj, x))

    def _positions(self, x: Tensor, state: PowerState | None) -> Tensor:
        """Learned positions ``[B, T, Hk]``: float64, since a sum over a long context leaves float32 no fraction."""
        rate = 1 + _wide_linear(self.rate_proj, x).double().tanh()
        start = -1.0 if state is None or state.position is None else state.position[:, None]
        return start + rate.cumsum(1)


def _wide_linear(linear: nn.Linear, x: Tensor) -> Tensor:
    """The projection in float32 or wider, whatever autocast says."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(dtype), linear.weight.to(dtype), None if linear.bias is None else linear.bias.to(dtype))
