"""Exponential attention over the whole context: the transformer's own mixer."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers.base import Mixer, MixerConfig, sdpa


class KVCache(NamedTuple):
    """Keys and values ``[B, S, Hk, D]`` of the tokens a mixer may still attend to, after ``length`` tokens."""

    k: Tensor
    v: Tensor
    length: int


@dataclass(frozen=True, kw_only=True)
class Softmax(MixerConfig):
    """Exponential attention (paper section 2): weights ``exp(q·k / sqrt(D))``; the state is the KV cache."""

    name: ClassVar[str] = "softmax"

    def build(self) -> "SoftmaxMixer":
        return SoftmaxMixer(self)

    def state_size(self, context: int) -> StateSize:
        elements = 2 * self.kv_heads * self.head_dim * context
        return StateSize(elements, elements)

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        keys = (context + 1) / 2 if causal else context
        return Flops(self._projection_flops(), 4.0 * self.num_heads * self.head_dim * keys)


class SoftmaxMixer(Mixer):
    """Module of :class:`Softmax`."""

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: KVCache | None, return_state: bool
    ) -> tuple[Tensor, KVCache | None]:
        if state is not None:
            k, v = torch.cat([state.k, k], dim=1), torch.cat([state.v, v], dim=1)
        T, S = q.shape[1], k.shape[1]
        if S == T:
            y = sdpa(q, k, v, causal=True)
        else:
            mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T) if T > 1 else None
            y = sdpa(q, k, v, mask)
        return y, KVCache(k, v, S) if return_state else None
