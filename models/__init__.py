"""Language models with swappable mixers, and what they cost."""

from icl_eval.models.backbones import BACKBONES, RWKV, Backbone, Transformer
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.language_model import LanguageModel, ModelConfig
from icl_eval.models.mixers import MIXERS, Linear, MixerConfig, Power, Softmax, Window
from icl_eval.models.sizes import SIZES, Size, model_config, rotary_base

__all__ = [
    "BACKBONES",
    "MIXERS",
    "RWKV",
    "SIZES",
    "Backbone",
    "Flops",
    "LanguageModel",
    "Linear",
    "MixerConfig",
    "ModelConfig",
    "Power",
    "Size",
    "Softmax",
    "StateSize",
    "Transformer",
    "Window",
    "model_config",
    "rotary_base",
]
