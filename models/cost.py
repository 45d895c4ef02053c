"""What a model costs: elements of state, and FLOPs on weights and on state."""

from typing import NamedTuple


class StateSize(NamedTuple):
    """Elements carried from one token to the next, for one sequence.

    Attributes:
        mathematical: what the architecture's definition needs.
        stored: what the implementation holds in tensors while decoding; bytes are this times the element's size.
    """

    mathematical: int
    stored: int

    def __add__(self, other: tuple) -> "StateSize":
        return StateSize(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __mul__(self, factor: int) -> "StateSize":  # type: ignore[override]
        return StateSize(*(factor * mine for mine in self))


class Flops(NamedTuple):
    """Forward FLOPs per token, 2 per multiply-add of a matrix product, averaged over the positions of a context.

    Attributes:
        weight: products of an activation with a parameter.
        state: products of an activation with a state (or with the keys and values of the context).
    """

    weight: float
    state: float

    @property
    def total(self) -> float:
        return self.weight + self.state

    @property
    def weight_state_ratio(self) -> float:
        """WSFR (paper section 3): weight FLOPs for one state FLOP; infinite without state."""
        return self.weight / self.state if self.state else float("inf")

    def __add__(self, other: tuple) -> "Flops":
        return Flops(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __mul__(self, factor: float) -> "Flops":  # type: ignore[override]
        return Flops(*(factor * mine for mine in self))
