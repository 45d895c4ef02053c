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


class PowerState(NamedTuple):
    """Float32 state of power attention, in the one canonical order, after ``length`` tokens.

    Attributes:
        S: ``[B, Hk, D_spow, V]``, the sum of ``φ(k) vᵀ``.
        z: ``[B, Hk, D_spow]``, the sum of ``φ(k)``; ``None`` without row-sum normalisation.
        length: tokens seen.
    """

    S: Tensor
    z: Tensor | None
    length: int


@dataclass(frozen=True, kw_only=True)
class Power(MixerConfig):
    """Power attention of degree p (paper section 2): weights ``(q·k)^p``, gated per key-value head.

    Attributes:
        degree: p; the state holds ``C(head_dim + p - 1, p)`` rows a head.
        normalization: ``"row_sum"`` divides by the sum of the weights (even degrees, as in the paper); ``"none"``
            leaves the weights signed and normalises the output of each head instead (RMS, learned scale): any degree.
        gated: a learned, data-dependent forgetting factor ``sigmoid(w·x + b)`` per key-value head and token.
        gate_timescale_tokens: shortest and longest memory of the heads at initialisation, log-spaced over the heads.
        chunk_size: tokens a chunk in the chunked form; ``None`` takes the kernels' default.
    """

    name: ClassVar[str] = "power"

    degree: int = 2
    normalization: Literal["row_sum", "none"] = "row_sum"
    gated: bool = True
    gate_timescale_tokens: tuple[float, float] = (64.0, 4096.0)
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.degree >= 1, "degree", "at least 1")
        self.require(self.normalization in ("row_sum", "none"), "normalization", "'row_sum' or 'none'")
        self.require(
            self.normalization == "none" or self.degree % 2 == 0,
            "degree",
            "even with normalization = 'row_sum', whose weights must not be negative; use normalization = 'none'",
        )
        low, high = self.gate_timescale_tokens
        self.require(
            1 <= low <= high, "gate_timescale_tokens", "a pair (shortest, longest) with 1 <= shortest <= longest"
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
        columns = self.head_dim + (self.normalization == "row_sum")
        elements = self.kv_heads * self.expanded_dim * columns
        return StateSize(elements, elements)

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
        gate = 2.0 * self.width * self.kv_heads if self.gated else 0.0
        return Flops(self._projection_flops() + gate, state / context)


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
                self.gate_proj.bias.copy_(spread if config.kv_heads > 1 else (low + high) / 2)

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: PowerState | None, return_state: bool
    ) -> tuple[Tensor, PowerState | None]:
        config, T = self.config, q.shape[1]
        log_g = self._log_gates(x) if config.gated else None
        length = T if state is None else T + state.length
        inner = None if state is None else (state.S, state.z)
        if T == 1 and return_state:
            gate = None if log_g is None else log_g[:, 0]
            y, (S, z) = power_attention_step(
                q[:, 0], k[:, 0], v[:, 0], gate, inner, degree=config.degree, normalization=config.normalization
            )
            return self.out_norm(y[:, None]), PowerState(S, z, length)
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
        return self.out_norm(y), PowerState(S, z, length)

    def _log_gates(self, x: Tensor) -> Tensor:
        """Log gates ``[B, T, Hk]`` in float32 or wider: half precision would quantise long memories."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            gate = F.linear(x.to(dtype), self.gate_proj.weight.to(dtype), self.gate_proj.bias.to(dtype))
        return F.logsigmoid(gate)
