"""Exponential attention over the last ``window`` tokens, at a cost linear in the context."""

from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers.base import Mixer, MixerConfig, sdpa
from icl_eval.models.mixers.uncompiled import uncompiled

FLEX_BLOCK = 128
"""Queries and keys a block of FlexAttention: the unit in which it leaves masked pairs out."""


class WindowCache(NamedTuple):
    """Keys and values ``[B, S, Hk, D]`` of the last ``S <= window`` of ``length`` tokens."""

    k: Tensor
    v: Tensor
    length: int


@dataclass(frozen=True, kw_only=True)
class Window(MixerConfig):
    """Window-w attention (paper section 2): exponential attention over the last w keys, the query's own included.

    On a CUDA GPU in up to 32 bits, FlexAttention leaves out blocks of 128 × 128 pairs that lie wholly outside the
    window. Elsewhere sequences are computed in blocks of w queries, each over its own and the previous block of keys.
    Both execute some masked pairs, which are not counted: see :meth:`masked_flops`.

    Attributes:
        window: w, in tokens.
        backend: ``"flex"``, ``"blocked"``, or ``"auto"``, which is flex wherever it runs.
    """

    name: ClassVar[str] = "window"

    window: int = 64
    backend: Literal["auto", "flex", "blocked"] = "auto"

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

    def decode_state_flops(self, context: int) -> float:
        return 4.0 * self.num_heads * self.head_dim * min(self.window, context)

    def masked_flops(self, context: int, *, backend: Literal["flex", "blocked"] = "blocked") -> float:
        if backend == "flex":
            partial, full = _band_blocks(context, context, self.window, torch.device("cpu"))
            executed = FLEX_BLOCK**2 * int((partial | full).sum()) / context
        elif self.window >= context:
            executed = context
        else:
            executed = 2 * self.window * -(-context // self.window) * self.window / context
        return 4.0 * self.num_heads * self.head_dim * (executed - min(self.window, context))


class WindowMixer(Mixer):
    """Module of :class:`Window`."""

    config: Window

    def attend(
        self, x: Tensor, q: Tensor, k: Tensor, v: Tensor, state: WindowCache | None, return_state: bool
    ) -> tuple[Tensor, WindowCache | None]:
        w, T = self.config.window, q.shape[1]
        past = 0
        if state is not None:
            past = min(state.k.shape[1], w - 1)
            k, v = (
                torch.cat([old[:, old.shape[1] - past :].to(new.dtype), new], dim=1)
                for old, new in ((state.k, k), (state.v, v))
            )
        new_state = None
        if return_state:
            length = T if state is None else T + state.length
            new_state = WindowCache(k[:, -w:].clone(), v[:, -w:].clone(), length)
        if T == 1:
            return sdpa(q, k, v), new_state
        if past == 0 and w >= T:
            return sdpa(q, k, v, causal=True), new_state
        if self._uses_flex(q):
            return flex_window(q, k, v, w), new_state
        return blocked_window(q, k, v, min(w, k.shape[1])), new_state

    def _uses_flex(self, q: Tensor) -> bool:
        runs = q.is_cuda and q.dtype != torch.float64
        if self.config.backend == "flex" and not runs:
            raise ValueError(
                f"Window.backend = 'flex': needs a CUDA GPU and at most 32 bits, got {q.device.type} and "
                f"{str(q.dtype).removeprefix('torch.')}; use 'blocked' or 'auto'"
            )
        return runs and self.config.backend != "blocked"


def blocked_window(q: Tensor, k: Tensor, v: Tensor, w: int) -> Tensor:
    """Window attention of T queries, the last T of the S keys being theirs: ``[B, T, H, D]``."""
    B, T = q.shape[:2]
    past = k.shape[1] - T
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


@uncompiled(recursive=False)
def flex_window(q: Tensor, k: Tensor, v: Tensor, w: int) -> Tensor:
    """As :func:`blocked_window`, through FlexAttention: compiled on a GPU, and as a plain formula on a CPU.

    Where the layer is compiled, this function stays a region of its own, so that its mask is made once and kept.
    """
    y = flex_form(q.device.type)(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=band_mask(q.shape[1], k.shape[1], w, q.device),
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return y.transpose(1, 2)


@cache
def flex_form(device_type: str) -> Any:
    return torch.compile(flex_attention, dynamic=False) if device_type == "cuda" else flex_attention


@lru_cache(maxsize=64)
def band_mask(T: int, S: int, w: int, device: torch.device) -> BlockMask:
    """The window's mask for T queries over S keys, in blocks; the dense ``[T, S]`` mask never exists."""
    past = S - T

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query + past) & (key > query + past - w)

    partial, full = _band_blocks(T, S, w, device)
    counts = [blocks.sum(-1, dtype=torch.int32)[None, None] for blocks in (partial, full)]
    order = [blocks.int().argsort(dim=-1, descending=True, stable=True).int()[None, None] for blocks in (partial, full)]
    return BlockMask.from_kv_blocks(
        counts[0],
        order[0],
        counts[1],
        order[1],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(T, S),
    )


def _band_blocks(T: int, S: int, w: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which blocks of the ``[T, S]`` mask are partly and which are wholly inside the window, bool ``[rows, columns]``.

    Blocks that reach beyond the last query or key count as partial.
    """
    past = S - T
    first_query = torch.arange(-(-T // FLEX_BLOCK), device=device)[:, None] * FLEX_BLOCK
    first_key = torch.arange(-(-S // FLEX_BLOCK), device=device) * FLEX_BLOCK
    last_query, last_key = first_query + FLEX_BLOCK - 1, first_key + FLEX_BLOCK - 1
    touched = (first_key <= last_query.clamp(max=T - 1) + past) & (last_key.clamp(max=S - 1) > first_query + past - w)
    full = (last_key <= first_query + past) & (first_key > last_query + past - w) & (last_query < T) & (last_key < S)
    return touched & ~full, full
