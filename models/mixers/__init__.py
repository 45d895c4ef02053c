"""Mixers. ``MIXERS`` maps the names of the command line to config classes."""

from icl_eval.models.mixers.base import Mixer, MixerConfig
from icl_eval.models.mixers.linear import Linear
from icl_eval.models.mixers.power import Power
from icl_eval.models.mixers.softmax import Softmax
from icl_eval.models.mixers.window import Window

MIXERS: dict[str, type[MixerConfig]] = {mixer.name: mixer for mixer in (Softmax, Window, Linear, Power)}

__all__ = ["MIXERS", "Linear", "Mixer", "MixerConfig", "Power", "Softmax", "Window"]
