"""What the recurrent mixers of flash-linear-attention share: which kernel runs, costs, and the short convolution."""

import importlib
import warnings
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from icl_eval.kernels.recurrence import linear_recurrence, linear_recurrence_flops
from icl_eval.models.cost import Flops, StateSize
from icl_eval.models.mixers.base import MixerConfig, SequenceMixer
from icl_eval.models.mixers.uncompiled import uncompiled

Backend = Literal["auto", "fla", "torch"]
CONV_TAPS = 4
"""Taps of the short convolution in all of these mixers."""


class RecurrentState(NamedTuple):
    """State of a recurrent mixer after ``length`` tokens.

    Attributes:
        S: ``[B, H, K, V]``, float32.
        inputs: ``[B, n, channels]``, the last inputs of the short convolution or token shift; ``None`` without one.
        length: tokens seen.
    """

    S: Tensor
    inputs: Tensor | None
    length: int


@dataclass(frozen=True, kw_only=True)
class RecurrentConfig(MixerConfig):
    """Base of the recurrent mixers' configs: their positions come from decay, convolution or token shift.

    On a CUDA GPU they run through the kernels of flash-linear-attention (the extra ``fla``) where those are right, and
    otherwise through :func:`icl_eval.kernels.recurrence.linear_recurrence`: in plain torch, equally right, and slower.

    Attributes:
        backend: ``"fla"`` insists on the kernels, ``"torch"`` on the torch form; ``"auto"`` takes the kernels on a GPU
            and warns once where it cannot.
    """

    operator: ClassVar[str]
    """Module and function of the kernel within the package ``fla``."""
    scalar_decay: ClassVar[bool] = False
    """One decay a token and head, whose kernels fla has reason to refuse."""
    kernel_dtypes: ClassVar[tuple[torch.dtype, ...]] = (torch.bfloat16, torch.float16, torch.float32)
    """What the kernels compute in."""
    vector_decay: ClassVar[bool] = False
    delta: ClassVar[bool] = False

    rotary_base: float | None = None
    backend: Backend = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.rotary_base is None, "rotary_base", f"None: {self.name} has no rotary embedding")
        self.require(self.kv_heads == self.num_heads, "num_kv_heads", f"None: the heads of {self.name} are not grouped")
        self.require(not self.qk_norm, "qk_norm", f"False: {self.name} is taken as its authors normalise it")

    @property
    def state_heads(self) -> int:
        return self.num_heads

    @property
    def key_dim(self) -> int:
        """K, the keys' size a head."""
        return self.head_dim

    @property
    def value_dim(self) -> int:
        """V, the values' size a head."""
        return self.head_dim

    @property
    def convolved(self) -> int:
        """Channels that pass the short convolution."""
        return 0

    @property
    def kept_inputs(self) -> StateSize:
        """The last inputs that are kept."""
        elements = (CONV_TAPS - 1) * self.convolved
        return StateSize(elements, elements)

    @abstractmethod
    def weight_flops(self) -> float:
        """FLOPs per token on parameters, the short convolution's included."""

    def state_size(self, context: int) -> StateSize:
        matrix = self.state_heads * self.key_dim * self.value_dim
        return StateSize.float32(matrix) + self.kept_inputs

    def flops_per_token(self, context: int, *, causal: bool = True) -> Flops:
        return Flops(self.weight_flops(), self._recurrence_flops(context, causal) / context)

    def decode_state_flops(self, context: int) -> float:
        return self._recurrence_flops(1, True)

    def _recurrence_flops(self, context: int, causal: bool) -> float:
        return self.state_heads * linear_recurrence_flops(
            context,
            key_dim=self.key_dim,
            value_dim=self.value_dim,
            delta=self.delta,
            vector_decay=self.vector_decay,
            causal=causal,
        )


class RecurrentMixer(SequenceMixer):
    """Base of the recurrent mixers: :meth:`recur` runs the recurrence in the form that the config and machine allow."""

    config: RecurrentConfig

    def __init__(self, config: RecurrentConfig):
        super().__init__()
        self.config = config

    @uncompiled(recursive=True)
    def recur(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        log_decay: Tensor | None = None,
        a: Tensor | None = None,
        b: Tensor | None = None,
        *,
        state: RecurrentState | None,
        kernel: Callable[..., tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """Outputs ``[B, T, H, V]`` and the state's matrix; see :func:`linear_recurrence` for the arguments.

        ``torch.compile`` passes it by: it cannot look into fla's launches, and would unroll the loop over chunks.

        Args:
            kernel: the same by fla: a function of the operator, and of options that it is to be handed.
        """
        matrix = None if state is None else state.S
        with torch.autocast(v.device.type, enabled=False):
            if v.shape[1] > 1 and self._uses_fla(v):
                operator = fla_operator(self.config.operator)
                return kernel(operator, initial_state=matrix, output_final_state=True)
            return linear_recurrence(q, k, v, log_decay, a, b, initial_state=matrix)

    def _uses_fla(self, v: Tensor) -> bool:
        config = self.config
        if config.backend == "torch" or (config.backend == "auto" and not v.is_cuda):
            return False
        problem = fla_problem(config.operator, config.scalar_decay, v.device)
        if problem is None and v.dtype not in config.kernel_dtypes:
            takes, given = ([str(d).removeprefix("torch.") for d in ds] for ds in (config.kernel_dtypes, [v.dtype]))
            problem = f"the kernels of flash-linear-attention take {', '.join(takes)}, not {given[0]}"
        if problem is None:
            return True
        if config.backend == "fla":
            raise ValueError(f"{type(config).__name__}.backend = 'fla': {problem}; use 'torch', which runs anywhere")
        warn_once(f"{config.name}: {problem}. Until then it runs in plain torch: right, but slower.")
        return False


@cache
def fla_problem(operator: str, scalar_decay: bool, device: torch.device) -> str | None:
    """Why the kernels of flash-linear-attention cannot be used, and what would help; ``None`` if they can."""
    if device.type != "cuda":
        return f"the kernels of flash-linear-attention need a CUDA GPU, and the tensors are on {device.type}"
    try:
        fla_operator(operator)
    except ImportError as error:
        return f"it needs flash-linear-attention (pip install 'icl-eval[fla]'; {error})"
    hopper = torch.cuda.get_device_capability(device)[0] == 9
    if scalar_decay and hopper and (3, 4, 0) <= triton_version() < (3, 7, 1):
        return (
            "with one decay a head the kernels of flash-linear-attention give wrong gradients on Hopper GPUs under "
            "Triton 3.4 to 3.7.0 (its issue 640); install Triton 3.7.1 or newer"
        )
    return None


@cache
def fla_operator(name: str) -> Callable[..., Any]:
    """``"fla.ops.gla.chunk_gla"``, imported.

    Raises:
        ImportError: the package is not there, or lacks the operator.
    """
    module, function = name.rsplit(".", 1)
    try:
        return getattr(importlib.import_module(module), function)
    except AttributeError as error:
        raise ImportError(str(error)) from None


@cache
def triton_version() -> tuple[int, ...]:
    import triton

    return tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3])


@cache
def warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


class ShortConvolution(nn.Module):
    """A depth-wise causal convolution and SiLU; its weights start at PyTorch's scale, as their authors leave them."""

    def __init__(self, channels: int, *, bias: bool = False):
        super().__init__()
        self.conv = nn.Conv1d(channels, channels, CONV_TAPS, groups=channels, bias=bias)
        self.conv.weight.init_gain = 3**-0.5  # type: ignore[attr-defined]

    def forward(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """``[B, T, channels]``, and the last inputs ``[B, CONV_TAPS - 1, channels]``."""
        past = x.new_zeros(x.shape[0], CONV_TAPS - 1, x.shape[2]) if past is None else past.to(x.dtype)
        x = torch.cat([past, x], dim=1)
        return F.silu(self.conv(x.mT).mT), x[:, 1 - CONV_TAPS :].clone()


def decay_start(heads: int, low: float, high: float) -> tuple[nn.Parameter, nn.Parameter]:
    """Mamba-2's ``A_log`` and ``dt_bias`` ``[heads]``: A uniform, time steps log-uniform from 0.001 to 0.1."""
    rate = torch.empty(heads).uniform_(low, high).clamp(min=1e-4)
    step = 10 ** torch.empty(heads).uniform_(-3, -1)
    return nn.Parameter(rate.log()), nn.Parameter(step + torch.log(-torch.expm1(-step)))


def wide_dtype(x: Tensor) -> torch.dtype:
    """Float32, or float64 for float64: gates in half precision would quantise long memories."""
    return torch.promote_types(x.dtype, torch.float32)
