"""Gated linear attention."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.models.mixers.fla.base import RecurrentConfig, RecurrentMixer, RecurrentState, wide_dtype

GATE_RANK = 16
GATE_NORMALIZER = 16.0
"""Log gates are divided by it, so that memory is long from the start."""


@dataclass(frozen=True, kw_only=True)
class GLA(RecurrentConfig):
    """Gated linear attention (Yang et al., arXiv 2312.06635): linear attention with a learned decay a key channel.

    As its authors build it: keys half as wide as values, low-rank gates, an RMS norm on each head and an output gate.
    They use four heads whatever the width; here heads are the config's, and the state shrinks with their size.
    """

    name: ClassVar[str] = "gla"
    operator: ClassVar[str] = "fla.ops.gla.chunk_gla"
    vector_decay: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.head_dim % 2 == 0, "num_heads", "such that heads (width / num_heads) have an even size")

    @property
    def key_dim(self) -> int:
        return self.head_dim // 2

    def weight_flops(self) -> float:
        keys = self.num_heads * self.key_dim
        return 2.0 * (self.width * (2 * keys + 3 * self.width) + GATE_RANK * (self.width + keys))

    def build(self) -> "GLAMixer":
        return GLAMixer(self)


class GLAMixer(RecurrentMixer):
    """Module of :class:`GLA`."""

    config: GLA

    def __init__(self, config: GLA):
        super().__init__(config)
        width, keys = config.width, config.num_heads * config.key_dim
        self.q_proj = nn.Linear(width, keys, bias=False)
        self.k_proj = nn.Linear(width, keys, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.gate_down = nn.Linear(width, GATE_RANK, bias=False)
        self.gate_up = nn.Linear(GATE_RANK, keys)
        self.output_gate_proj = nn.Linear(width, width, bias=False)
        self.out_norm = nn.RMSNorm(config.value_dim, eps=1e-5)
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, state: RecurrentState | None = None, *, return_state: bool = True
    ) -> tuple[Tensor, RecurrentState | None]:
        config, heads = self.config, (self.config.num_heads, -1)
        q, k, v = (proj(x).unflatten(-1, heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        log_decay = (
            F.logsigmoid(self.gate_up(self.gate_down(x)).unflatten(-1, heads).to(wide_dtype(x))) / GATE_NORMALIZER
        )
        scale = config.key_dim**-0.5
        y, S = self.recur(
            q * scale,
            k,
            v,
            log_decay,
            state=state,
            kernel=lambda chunk_gla, **options: chunk_gla(q, k, v, log_decay, scale=scale, **options),
        )
        y = self.out_norm(y).flatten(-2) * F.silu(self.output_gate_proj(x))
        length = x.shape[1] + (0 if state is None else state.length)
        return self.out_proj(y), RecurrentState(S, None, length) if return_state else None
