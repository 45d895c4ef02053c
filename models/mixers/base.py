"""What every mixer shares: a config with its costs, and the projections around the mixing itself."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.config import Config
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers.rotary import constant_rotary_table, rotate


@dataclass(frozen=True, kw_only=True)
class MixerConfig(Config, ABC):
    """Base of every mixer's config: the geometry of its heads, and its costs as pure arithmetic.

    Attributes:
        width: channels C of the model.
        num_heads: query heads H; ``head_dim`` is ``width / num_heads``, for keys and values alike.
        num_kv_heads: key-value heads, each serving ``num_heads / num_kv_heads`` query heads; ``None`` means
            ``num_heads``.
        rotary_base: base of the rotary position embedding of queries and keys; ``None`` leaves positions out.
        qk_norm: normalise queries and keys per head (RMS, learned scale) before the rotary embedding.
        name: the mixer's name on the command line.
        label: its name in figures.
        shifts_tokens: it has token shifts of its own, so that the RWKV backbone leaves its own one out.
    """

    width: int = 64
    num_heads: int = 4
    num_kv_heads: int | None = None
    rotary_base: float | None = 10_000.0
    qk_norm: bool = False
    name: ClassVar[str]
    shifts_tokens: ClassVar[bool] = False

    def __post_init__(self) -> None:
        self.require(self.width >= 1, "width", "at least 1")
        self.require(self.num_heads >= 1, "num_heads", "at least 1")
        self.require(self.width % self.num_heads == 0, "num_heads", f"a divisor of width = {self.width}")
        self.require(
            self.kv_heads >= 1 and self.num_heads % self.kv_heads == 0,
            "num_kv_heads",
            f"a divisor of num_heads = {self.num_heads}",
        )
        self.require(self.rotary_base is None or self.rotary_base > 1, "rotary_base", "None or above 1")
        self.require(
            self.rotary_base is None or self.head_dim % 2 == 0,
            "rotary_base",
            f"None where the head size (width / num_heads = {self.head_dim}) is odd",
        )

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def kv_heads(self) -> int:
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def label(self) -> str:
        return self.name

    def after(self, earlier: "tuple[MixerConfig, ...]") -> "MixerConfig":
        """This mixer as it stands in a model after the layers of earlier ones; most are the same everywhere."""
        return self

    @abstractmethod
    def build(self) -> "SequenceMixer":
        """The module, with parameters not yet initialised from a seed."""

    @abstractmethod
    def state_size(self, context: int) -> StateSize:
        """Elements of state after ``context`` tokens."""

    @abstractmethod
    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        """Forward FLOPs per token, averaged over a context of that many tokens.

        Args:
            context: tokens of the sequence.
            causal: count only the query-key pairs that causality allows, as executed; ``False`` is the paper's count.
        """

    def decode_state_flops(self, context: int) -> float:
        """State FLOPs of decoding the last token of a context of that many; the weights' are as in training.

        Unless a mixer says otherwise, each element of its state is updated once and queried once.
        """
        return 4.0 * self.state_size(context).mathematical

    def masked_flops(self, context: int) -> float:
        """State FLOPs per token that the torch form executes on masked pairs, beyond the count without causality."""
        return 0.0

    def _projection_flops(self) -> float:
        return 2.0 * self.width * self.head_dim * 2 * (self.num_heads + self.kv_heads)


class SequenceMixer(nn.Module, ABC):
    """What the backbones use of a mixer.

    A state is a ``NamedTuple`` of tensors and the number of tokens seen, ``length``; ``None`` is the state before the
    first token.
    """

    config: MixerConfig

    @abstractmethod
    def forward(self, x: Tensor, state: Any = None, *, return_state: bool = True) -> tuple[Tensor, Any]:
        """Mix a sequence that follows ``state``.

        Args:
            x: ``[B, T, C]``.
            state: what an earlier call returned, or ``None`` at the start.
            return_state: also return the state after the last token; ``None`` is returned in its place otherwise.

        Returns:
            ``[B, T, C]`` and the state.
        """

    def mix(
        self, x: Tensor, state: Any, first_values: Tensor | None, *, return_state: bool
    ) -> tuple[Tensor, Any, Tensor | None]:
        """:meth:`forward` for the backbones, which hand on what a mixer's first layer gives to its later ones.

        Args:
            first_values: values ``[B, T, C]`` of the first layer that has any to give; ``None`` in and before it.
        """
        return *self(x, state, return_state=return_state), first_values

    def start_at_depth(self, layer: int, num_layers: int) -> None:
        """Called by the backbone: where a start depends on depth, layer 0, …, ``num_layers - 1`` sets it here."""

    def step(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Mix one token ``[B, C]``; returns ``[B, C]`` and the state."""
        y, state = self(x[:, None], state)
        return y[:, 0], state

    def state_size(self, context: int) -> StateSize:
        return self.config.state_size(context)

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        return self.config.flops_per_token(context, causal=causal)


class Mixer(SequenceMixer):
    """Base of the attention mixers: projections, optional QK norm and rotary positions around :meth:`attend`."""

    def __init__(self, config: MixerConfig):
        super().__init__()
        self.config = config
        kv_width = config.kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.width, config.width, bias=False)
        self.k_proj = nn.Linear(config.width, kv_width, bias=False)
        self.v_proj = nn.Linear(config.width, kv_width, bias=False)
        self.out_proj = nn.Linear(config.width, config.width, bias=False)
        self.q_norm = nn.RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()

    def forward(self, x: Tensor, state: Any = None, *, return_state: bool = True) -> tuple[Tensor, Any]:
        head_dim = self.config.head_dim
        q = self.q_norm(self.q_proj(x).unflatten(-1, (-1, head_dim)))
        k = self.k_norm(self.k_proj(x).unflatten(-1, (-1, head_dim)))
        v = self.v_proj(x).unflatten(-1, (-1, head_dim))
        if self.config.rotary_base is not None:
            q, k = self.rotate(x, q, k, state)
        y, state = self.attend(x, q, k, v, state, return_state)
        return self.out_proj(y.flatten(-2)), state

    def rotate(self, x: Tensor, q: Tensor, k: Tensor, state: Any) -> tuple[Tensor, Tensor]:
        """Queries and keys with their rotary embedding; token t of the whole sequence stands at position t."""
        assert self.config.rotary_base is not None
        offset = 0 if state is None else state.length
        dtype = torch.promote_types(q.dtype, torch.float32)
        position = torch.arange(offset, offset + q.shape[1], device=q.device, dtype=dtype)[:, None]
        table = constant_rotary_table(position, self.config.head_dim, self.config.rotary_base, dtype)
        return rotate(q, *table), rotate(k, *table)

    @abstractmethod
    def attend(self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Any, return_state: bool) -> tuple[Tensor, Any]:
        """``[B, T, H, D]`` outputs for q ``[B, T, H, D]`` and k, v ``[B, T, Hk, D]``; x ``[B, T, C]`` feeds gates."""


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Softmax attention of ``[B, T, H, D]`` queries over ``[B, S, Hk, D]`` keys, through torch's fused kernels."""
    y = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=causal,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)
