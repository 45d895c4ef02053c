"""Exponential attention over the last ``window`` tokens, at a cost linear in the context."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers.base import Mixer, MixerConfig, sdpa
from icl_eval.models.mixers.softmax import KVCache


@dataclass(frozen=True, kw_only=True)
class Window(MixerConfig):
    """Window-w attention (paper section 2): exponential attention over the last w keys, the query's own included.

    Sequences are computed in blocks of w queries, each over its own and the previous block of keys; the masked half of
    those products is executed but not counted.

    Attributes:
        window: w, in tokens.
    """

    name: ClassVar[str] = "window"

    window: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.window >= 1, "window", "at least 1 token")

    @property
    def label(self) -> str:
        return f"window-{self.window}"

    def build(self) -> "WindowMixer":
        return WindowMixer(self)

    def state_size(self, context: int) -> StateSize:
        elements = 2 * self.kv_heads * self.head_dim * min(context, self.window)
        return StateSize(elements, elements)

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        w = min(self.window, context)
        keys = w - w * (w - 1) / (2 * context) if causal else w
        return Flops(self._projection_flops(), 4.0 * self.num_heads * self.head_dim * keys)


class WindowMixer(Mixer):
    """Module of :class:`Window`."""

    config: Window

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: KVCache | None, return_state: bool
    ) -> tuple[Tensor, KVCache | None]:
        w, T, length = self.config.window, q.shape[1], q.shape[1]
        if state is not None:
            k, v, length = torch.cat([state.k, k], dim=1), torch.cat([state.v, v], dim=1), length + state.length
        new_state = KVCache(k[:, -w:], v[:, -w:], length) if return_state else None
        past = k.shape[1] - T
        if T == 1:
            return sdpa(q, k[:, -w:], v[:, -w:]), new_state
        if past == 0 and w >= T:
            return sdpa(q, k, v, causal=True), new_state
        return _blocked(q, k, v, min(w, k.shape[1]), past), new_state


def _blocked(q: Tensor, k: Tensor, v: Tensor, w: int, past: int) -> Tensor:
    """Window attention of T queries, the first of them following ``past`` of the ``past + T`` keys."""
    B, T = q.shape[:2]
    blocks = -(-T // w)
    tail = blocks * w - T
    q = F.pad(q, (0, 0, 0, 0, 0, tail)).unflatten(1, (blocks, w))
    spans = []
    for z in (k, v):
        start = past - w
        z = z[:, start:] if start >= 0 else F.pad(z, (0, 0, 0, 0, -start, 0))
        z = F.pad(z, (0, 0, 0, 0, 0, tail)).unflatten(1, (blocks + 1, w))
        spans.append(torch.cat([z[:, :-1], z[:, 1:]], dim=2).flatten(0, 1))
    query, key = torch.arange(w, device=q.device)[:, None], torch.arange(2 * w, device=q.device)
    mask = (key > query) & (key <= query + w)
    exists = (torch.arange(blocks, device=q.device)[:, None] * w + key) >= w - past
    mask = (mask & exists[:, None]).repeat(B, 1, 1)[:, None]
    y = sdpa(q.flatten(0, 1), spans[0], spans[1], mask)
    return y.unflatten(0, (B, blocks)).flatten(1, 2)[:, :T]
