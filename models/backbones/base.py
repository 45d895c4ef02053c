"""What every backbone is: a config that builds one layer around a mixer and knows what the layer costs."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from icl_eval.config import Config
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers import MixerConfig


class Backbone(Config, ABC):
    """Base of the backbones' configs.

    The module that :meth:`build` gives maps ``[B, T, C]`` and its state (``None`` at the start) to ``[B, T, C]`` and
    the state after the last token, which is ``None`` when called with ``return_state=False``.

    Attributes:
        norm: the class of the model's norms, the last one before the head included.
        embedding_std: standard deviation of the embedding at the start, where it is not tied to the head.
        head_gain: that of the head over ``1 / sqrt(width)``.
    """

    norm: ClassVar[type[nn.RMSNorm] | type[nn.LayerNorm]] = nn.RMSNorm
    embedding_std: ClassVar[float] = 0.02
    head_gain: ClassVar[float] = 1.0

    @abstractmethod
    def build(self, mixer: MixerConfig, layer: int, num_layers: int) -> nn.Module:
        """Layer number ``layer`` of ``num_layers``, counted from 0, around ``mixer``."""

    @abstractmethod
    def state_size(self, mixer: MixerConfig, context: int) -> StateSize:
        """State elements of one layer after ``context`` tokens, the mixer's included."""

    @abstractmethod
    def flops_per_token(self, mixer: MixerConfig, context: int, *, causal: bool = True) -> Flops:
        """Forward FLOPs per token of one layer, the mixer's included; ``causal`` as for the mixers."""
