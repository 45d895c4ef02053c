"""Key-value caches of the ``transformers`` library with room for a whole context, written in place."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class ReservedLayer(DynamicLayer):
    """Keys and values ``[B, H, T, D]`` of a layer at the beginning of buffers that hold ``context`` tokens.

    The library's own layer copies all of its keys and values for each piece that is read. Beyond ``context`` tokens so
    does this one.

    Args:
        layer: the library's, with what was read so far.
        context: tokens that there is room for.
    """

    def __init__(self, layer: DynamicLayer, context: int):
        super().__init__()
        vars(self).update(vars(layer))
        assert layer.keys is not None
        assert layer.values is not None
        self._buffers = tuple(x.new_empty(*x.shape[:-2], context, x.shape[-1]) for x in (layer.keys, layer.values))
        self.keys, self.values = self._write(0, layer.keys, layer.values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        if start + key_states.shape[-2] > self._buffers[0].shape[-2]:
            return super().update(key_states, value_states, *args, **kwargs)
        self.keys, self.values = self._write(start, key_states, value_states)
        return self.keys, self.values

    def _write(self, start: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put tokens behind the first ``start``; returns the keys and the values of all up to their end."""
        end = start + keys.shape[-2]
        for buffer, new in zip(self._buffers, (keys, values), strict=True):
            buffer[..., start:end, :] = new
        written_keys, written_values = (buffer[..., :end, :] for buffer in self._buffers)
        return written_keys, written_values


def reserve(cache: Any, context: int) -> None:
    """Make room for ``context`` tokens in the layers of a cache that keep all of their tokens."""
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length() < context:
            cache.layers[number] = ReservedLayer(layer, context)
