"""Mixers. ``MIXERS`` maps the names of the command line to config classes."""

from icl_eval.models.mixers.base import Mixer, MixerConfig, SequenceMixer
from icl_eval.models.mixers.fla import GLA, RWKV7, DeltaNet, GatedDeltaNet, Mamba2
from icl_eval.models.mixers.linear import Linear
from icl_eval.models.mixers.power import Power
from icl_eval.models.mixers.softmax import Softmax
from icl_eval.models.mixers.window import Window

MIXERS: dict[str, type[MixerConfig]] = {
    mixer.name: mixer for mixer in (Softmax, Window, Linear, Power, RWKV7, GatedDeltaNet, Mamba2, GLA, DeltaNet)
}

__all__ = [
    "GLA",
    "MIXERS",
    "RWKV7",
    "DeltaNet",
    "GatedDeltaNet",
    "Linear",
    "Mamba2",
    "Mixer",
    "MixerConfig",
    "Power",
    "SequenceMixer",
    "Softmax",
    "Window",
]
