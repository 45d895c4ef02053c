"""The delta rule, without and with a decay: DeltaNet and Gated DeltaNet."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.models.mixers.fla.base import (
    CONV_TAPS,
    RecurrentConfig,
    RecurrentMixer,
    RecurrentState,
    ShortConvolution,
    decay_start,
    wide_dtype,
)


@dataclass(frozen=True, kw_only=True)
class DeltaNet(RecurrentConfig):
    """The delta rule (Yang et al., arXiv 2406.06484): a value replaces what its key's direction held before.

    As its authors build it: short convolutions and SiLU on queries, keys and values, keys and queries of length one, a
    learned strength of writing in (0, 1), and an RMS norm on each head. Their heads are of 128.
    """

    name: ClassVar[str] = "deltanet"
    operator: ClassVar[str] = "fla.ops.delta_rule.chunk_delta_rule"
    kernel_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16)
    delta: ClassVar[bool] = True

    @property
    def convolved(self) -> int:
        return self.num_heads * (2 * self.key_dim + self.value_dim)

    def weight_flops(self) -> float:
        values = self.num_heads * self.value_dim
        return 2.0 * (self.width * (self.convolved + values + self.num_heads) + CONV_TAPS * self.convolved)

    def build(self) -> "DeltaNetMixer":
        return DeltaNetMixer(self)


@dataclass(frozen=True, kw_only=True)
class GatedDeltaNet(DeltaNet):
    """The delta rule with a decay a head (Yang et al., arXiv 2412.06464), after Mamba-2's.

    As its authors build it, on :class:`DeltaNet`: keys of 3/4 and values of 3/2 of the width, decays that start as
    Mamba-2's, and an output gate. Their heads are of 256 (keys) and 512.
    """

    name: ClassVar[str] = "gated_deltanet"
    operator: ClassVar[str] = "fla.ops.gated_delta_rule.chunk_gated_delta_rule"
    kernel_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32)
    scalar_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(
            self.head_dim % 4 == 0, "num_heads", "such that the size of heads (width / num_heads) is a multiple of 4"
        )

    @property
    def key_dim(self) -> int:
        return 3 * self.head_dim // 4

    @property
    def value_dim(self) -> int:
        return 3 * self.head_dim // 2

    def weight_flops(self) -> float:
        return super().weight_flops() + 2.0 * self.width * self.num_heads * (self.value_dim + 1)

    def build(self) -> "GatedDeltaNetMixer":
        return GatedDeltaNetMixer(self)


class DeltaNetMixer(RecurrentMixer):
    """Module of :class:`DeltaNet`."""

    config: DeltaNet

    def __init__(self, config: DeltaNet):
        super().__init__(config)
        keys, values = config.num_heads * config.key_dim, config.num_heads * config.value_dim
        self.q_proj = nn.Linear(config.width, keys, bias=False)
        self.k_proj = nn.Linear(config.width, keys, bias=False)
        self.v_proj = nn.Linear(config.width, values, bias=False)
        self.conv = ShortConvolution(config.convolved)
        self.strength_proj = nn.Linear(config.width, config.num_heads, bias=False)
        self.out_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.out_proj = nn.Linear(values, config.width, bias=False)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, RecurrentState | None]:
        config = self.config
        qkv = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], dim=-1)
        qkv, inputs = self.conv(qkv, None if state is None else state.inputs)
        q, k, v = (
            z.unflatten(-1, (config.num_heads, -1))
            for z in qkv.split([config.num_heads * d for d in (config.key_dim, config.key_dim, config.value_dim)], -1)
        )
        q, k = (F.normalize(z.to(wide_dtype(z)), dim=-1, eps=1e-6).to(z.dtype) for z in (q, k))
        strength = self.strength_proj(x).sigmoid()
        log_decay, scale = self.log_decay(x), config.key_dim**-0.5
        written = strength[..., None] * k
        # With a decay the correction acts on the decayed state: γ (1 - β k kᵀ) S.
        read = k if log_decay is None else k * log_decay[..., None].exp()
        gates = () if log_decay is None else (log_decay,)
        y, S = self.recur(
            q * scale,
            written,
            v,
            None if log_decay is None else log_decay[..., None],
            read,
            -written,
            state=state,
            kernel=lambda delta_rule, **options: delta_rule(q, k, v, *gates, strength, scale=scale, **options),
        )
        y = self.gate_output(self.out_norm(y), x).flatten(-2)
        length = x.shape[1] + (0 if state is None else state.length)
        return self.out_proj(y), RecurrentState(S, inputs, length) if return_state else None

    def log_decay(self, x: Tensor) -> Tensor | None:
        """Log of the decay of each head and token, ``[B, T, H]``."""
        return None

    def gate_output(self, y: Tensor, x: Tensor) -> Tensor:
        """Outputs ``[B, T, H, V]`` for inputs ``[B, T, C]``."""
        return y


class GatedDeltaNetMixer(DeltaNetMixer):
    """Module of :class:`GatedDeltaNet`."""

    def __init__(self, config: GatedDeltaNet):
        super().__init__(config)
        self.decay_proj = nn.Linear(config.width, config.num_heads, bias=False)
        self.A_log, self.dt_bias = decay_start(config.num_heads, 0.0, 16.0)
        self.output_gate_proj = nn.Linear(config.width, config.num_heads * config.value_dim, bias=False)

    def log_decay(self, x: Tensor) -> Tensor:
        dtype = wide_dtype(x)
        return -self.A_log.to(dtype).exp() * F.softplus(self.decay_proj(x).to(dtype) + self.dt_bias.to(dtype))

    def gate_output(self, y: Tensor, x: Tensor) -> Tensor:
        return y * F.silu(self.output_gate_proj(x)).unflatten(-1, y.shape[-2:])
