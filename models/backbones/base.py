"""What every backbone is: a config that builds one layer around a mixer and knows what the layer costs."""

from abc import ABC, abstractmethod

from torch import nn

from icl_eval.config import Config
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers import MixerConfig


class Backbone(Config, ABC):
    """Base of the backbones' configs.

    The module that :meth:`build` gives maps ``[B, T, C]`` and its state (``None`` at the start) to ``[B, T, C]`` and
    the state after the last token, which is ``None`` when called with ``return_state=False``.
    """

    @abstractmethod
    def build(self, mixer: MixerConfig, depth: float) -> nn.Module:
        """One layer around ``mixer``; ``depth`` is 0 for the first layer and 1 for the last."""

    @abstractmethod
    def state_size(self, mixer: MixerConfig, context: int) -> StateSize:
        """State elements of one layer after ``context`` tokens, the mixer's included."""

    @abstractmethod
    def flops_per_token(self, mixer: MixerConfig, context: int, *, causal: bool = True) -> Flops:
        """Forward FLOPs per token of one layer, the mixer's included; ``causal`` as for the mixers."""
