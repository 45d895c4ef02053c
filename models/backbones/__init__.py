"""Backbones: what surrounds the mixer in a layer. ``BACKBONES`` maps names to config classes."""

from icl_eval.models.backbones.base import Backbone
from icl_eval.models.backbones.rwkv import RWKV
from icl_eval.models.backbones.transformer import Transformer

BACKBONES: dict[str, type[Backbone]] = {"transformer": Transformer, "rwkv": RWKV}

__all__ = ["BACKBONES", "RWKV", "Backbone", "Transformer"]
