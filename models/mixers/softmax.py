"""Exponential attention over the whole context: the transformer's own mixer."""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers.base import Mixer, MixerConfig, sdpa

MIN_CAPACITY = 16
"""Tokens that a KV cache has room for at least."""


def capacity(length: int) -> int:
    """Tokens that the cache of ``length`` tokens has room for: the next power of two."""
    return max(MIN_CAPACITY, 1 << (length - 1).bit_length())


class KVCache(NamedTuple):
    """Keys and values of ``length`` tokens, in buffers with room for more.

    The buffer doubles when it is full, so that decoding T tokens copies O(T) and not O(T²) of them. It is shared along
    a chain of states: a state whose next place is taken already (a second continuation) copies first, and autograd,
    which forbids writing in place, copies always.

    Attributes:
        k, v: ``[B, capacity, Hk, D]``; rows from ``length`` on hold nothing.
        length: tokens seen.
        taken: one number, how many rows of the buffer some state has claimed.
    """

    k: Tensor
    v: Tensor
    length: int
    taken: list[int]


@dataclass(frozen=True, kw_only=True)
class Softmax(MixerConfig):
    """Exponential attention (paper section 2): weights ``exp(q·k / sqrt(D))``; the state is the KV cache."""

    name: ClassVar[str] = "softmax"

    def build(self) -> "SoftmaxMixer":
        return SoftmaxMixer(self)

    def state_size(self, context: int) -> StateSize:
        elements = 2 * self.kv_heads * self.head_dim
        return StateSize(elements * context, elements * capacity(context))

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        keys = (context + 1) / 2 if causal else context
        return Flops(self._projection_flops(), 4.0 * self.num_heads * self.head_dim * keys)

    def decode_state_flops(self, context: int) -> float:
        return 4.0 * self.num_heads * self.head_dim * context


class SoftmaxMixer(Mixer):
    """Module of :class:`Softmax`."""

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: KVCache | None, return_state: bool
    ) -> tuple[Tensor, KVCache | None]:
        T = q.shape[1]
        if state is None:
            return sdpa(q, k, v, causal=True), _append(None, k, v) if return_state else None
        state = _append(state, k, v)
        k, v = state.k[:, : state.length], state.v[:, : state.length]
        return sdpa(q, k, v, _lower_right(T, state.length)), state if return_state else None


def _lower_right(T: int, length: int) -> Tensor | None:
    """The causal mask of the last T of ``length`` tokens, never written out; its module takes a second to load."""
    if T == 1:
        return None
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(T, length)


def _append(state: KVCache | None, k: Tensor, v: Tensor) -> KVCache:
    """The cache with the keys and values ``[B, T, Hk, D]`` of T more tokens."""
    start = 0 if state is None else state.length
    length = start + k.shape[1]
    if (
        state is not None
        and length <= state.k.shape[1]
        and state.taken[0] == start
        and not (torch.is_grad_enabled() and (k.requires_grad or state.k.requires_grad))
    ):
        state.k[:, start:length], state.v[:, start:length] = k, v
        state.taken[0] = length
        return KVCache(state.k, state.v, length, state.taken)
    room = k.new_zeros(k.shape[0], capacity(length) - length, *k.shape[2:])
    grown = []
    for new, old in ((k, None if state is None else state.k), (v, None if state is None else state.v)):
        past = new[:, :0] if old is None else old[:, :start]
        grown.append(torch.cat([past.to(new.dtype), new, room], dim=1))
    keys, values = grown
    return KVCache(keys, values, length, [length])
