"""Sequence kernels: functions of tensors that know nothing of models or experiments."""

from icl_eval.kernels.power.attention import power_attention, power_attention_step
from icl_eval.kernels.power.cost import default_chunk_size, power_attention_flops
from icl_eval.kernels.power.embedding import expanded_dim, power_embedding

__all__ = [
    "default_chunk_size",
    "expanded_dim",
    "power_attention",
    "power_attention_flops",
    "power_attention_step",
    "power_embedding",
]
