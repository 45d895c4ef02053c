"""Recurrent mixers of flash-linear-attention, a file each, with its kernels on a GPU and in plain torch anywhere."""

from icl_eval.models.mixers.fla.deltanet import DeltaNet, GatedDeltaNet
from icl_eval.models.mixers.fla.gla import GLA
from icl_eval.models.mixers.fla.mamba2 import Mamba2
from icl_eval.models.mixers.fla.rwkv7 import RWKV7

__all__ = ["GLA", "RWKV7", "DeltaNet", "GatedDeltaNet", "Mamba2"]
