"""The kernels that hold most of the time, written for Hopper's asynchronous matrix units.

Triton waits for a matrix product whose left operand lies in registers before it scales the next one. Here, in Gluon
(Triton's language with explicit layouts), scaling one operand overlaps with the product of the one before. They take
the same arguments and give the same states and results as Triton's, in update_state.py, forward.py and backward.py one
folder up, for degree 2, bfloat16, and keys and values of as many features: 64, or 32 but for update_state.
"""

from icl_eval.kernels.power.hopper.forward import forward_kernel
from icl_eval.kernels.power.hopper.key_value_gradient import key_value_gradient_kernel
from icl_eval.kernels.power.hopper.query_gradient import query_gradient_kernel
from icl_eval.kernels.power.hopper.update_state import update_state_kernel

__all__ = ["forward_kernel", "key_value_gradient_kernel", "query_gradient_kernel", "update_state_kernel"]
