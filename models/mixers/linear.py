"""Linear attention: power attention of degree 1."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from icl_eval.models.mixers.power import Power


@dataclass(frozen=True, kw_only=True)
class Linear(Power):
    """Gated linear attention: weights ``q·k`` with their sign, and an RMS norm on each head's output.

    The kernel of degree 1 can be negative, so there is no row sum to divide by; the norm takes its place, as in RetNet
    and gated linear attention.
    """

    name: ClassVar[str] = "linear"

    degree: int = 1
    normalization: Literal["row_sum", "none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.degree == 1, "degree", "1; other degrees are the mixer 'power'")

    @property
    def label(self) -> str:
        return "linear"
