"""Mamba-2."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.kernels import power_attention, power_attention_flops, power_attention_step
from icl_eval.models.mixers.fla.base import (
    CONV_TAPS,
    RecurrentConfig,
    RecurrentMixer,
    RecurrentState,
    ShortConvolution,
    decay_start,
    wide_dtype,
)

EXPAND = 2
"""Inner width over the width of the model."""


@dataclass(frozen=True, kw_only=True)
class Mamba2(RecurrentConfig):
    """Mamba-2 (Dao and Gu, arXiv 2405.21060): a decay a head, and one key and one query shared by all heads.

    As its authors build it: twice the width inside, ``2 * num_heads`` heads, a state of 128 a channel, short
    convolutions, an input-dependent time step, a skip, and a gate before the last RMS norm. Its recurrence is gated
    linear attention with a decay a head, that is power attention of degree 1, and runs through those kernels: they
    need no other package, and are right where flash-linear-attention's are refused.

    Attributes:
        state_dim: size of keys and queries (N).
    """

    name: ClassVar[str] = "mamba2"
    operator: ClassVar[str] = ""
    scalar_decay: ClassVar[bool] = True

    state_dim: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.state_dim >= 1, "state_dim", "at least 1")
        self.require(self.backend != "fla", "backend", "'auto' or 'torch': mamba2 uses kernels of its own")

    @property
    def state_heads(self) -> int:
        return EXPAND * self.num_heads

    @property
    def key_dim(self) -> int:
        return self.state_dim

    @property
    def convolved(self) -> int:
        return EXPAND * self.width + 2 * self.state_dim

    def weight_flops(self) -> float:
        inner = EXPAND * self.width
        projections = self.width * (inner + self.convolved + self.state_heads) + inner * self.width
        return 2.0 * (projections + CONV_TAPS * self.convolved)

    def decode_state_flops(self, context: int) -> float:
        return 4.0 * self.state_heads * self.key_dim * self.value_dim

    @property
    def update_flops(self) -> float:
        """FLOPs of adding one token to the state."""
        return 2.0 * self.state_heads * self.key_dim * self.value_dim

    def _recurrence_flops(self, context: int, causal: bool) -> float:
        return self.state_heads * power_attention_flops(
            context,
            head_dim=self.key_dim,
            value_dim=self.value_dim,
            degree=1,
            normalization="none",
            causal=causal,
        )

    def build(self) -> "Mamba2Mixer":
        return Mamba2Mixer(self)


class Mamba2Mixer(RecurrentMixer):
    """Module of :class:`Mamba2`."""

    config: Mamba2

    def __init__(self, config: Mamba2):
        super().__init__(config)
        inner, heads = EXPAND * config.width, config.state_heads
        self.in_proj = nn.Linear(config.width, inner + config.convolved + heads, bias=False)
        self.conv = ShortConvolution(config.convolved, bias=True)
        self.A_log, self.dt_bias = decay_start(heads, 1.0, 16.0)
        self.skip = nn.Parameter(torch.ones(heads))
        self.out_norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, config.width, bias=False)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, RecurrentState | None]:
        config, heads, N = self.config, self.config.state_heads, self.config.state_dim
        inner = EXPAND * config.width
        gate, xkq, step = self.in_proj(x).split([inner, config.convolved, heads], dim=-1)
        xkq, inputs = self.conv(xkq, None if state is None else state.inputs)
        values, k, q = xkq.split([inner, N, N], dim=-1)
        values = values.unflatten(-1, (heads, -1))
        k, q = (z[:, :, None].expand(-1, -1, heads, -1) for z in (k, q))
        dtype = wide_dtype(x)
        step = F.softplus(step.to(dtype) + self.dt_bias.to(dtype))
        log_decay = -self.A_log.to(dtype).exp() * step
        v = values * step[..., None].to(values.dtype)
        y, S = self._attend(q, k, v, log_decay, state, return_state)
        y = (y + self.skip.to(y.dtype)[:, None] * values).flatten(-2)
        y = self.out_proj(self.out_norm(y * F.silu(gate)))
        if S is None:
            return y, None
        return y, RecurrentState(S, inputs, x.shape[1] + (0 if state is None else state.length))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, log_g: Tensor, state: RecurrentState | None, return_state: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Power attention of degree 1 and scale 1, whose state is ``[B, H, K, V]`` too."""
        inner = None if state is None else (state.S, None)
        if q.shape[1] == 1 and return_state:
            y, (S, _) = power_attention_step(
                q[:, 0], k[:, 0], v[:, 0], log_g[:, 0], inner, degree=1, scale=1.0, normalization="none"
            )
            return y[:, None], S
        result = power_attention(
            q,
            k,
            v,
            log_g,
            degree=1,
            scale=1.0,
            normalization="none",
            initial_state=inner,
            return_state=return_state,
            backend="chunked" if self.config.backend == "torch" else "auto",
        )
        if isinstance(result, Tensor):
            return result, None
        y, (S, _) = result
        return y, S
