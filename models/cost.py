"""What a model costs: elements and bytes of state, and FLOPs on weights and on state."""

from typing import NamedTuple


class StateSize(NamedTuple):
    """Elements carried from one token to the next, for one sequence.

    Attributes:
        mathematical: what the architecture's definition needs.
        stored: what the implementation holds in tensors while decoding token by token.
        fixed: of the stored elements, those whose type does not follow the activations'.
        fixed_bytes: what those take; recurrent states, and inputs that a backbone keeps for its
            short convolution or token shift, are float32 whatever products are taken in.
    """

    mathematical: int
    stored: int
    fixed: int = 0
    fixed_bytes: int = 0

    @classmethod
    def float32(cls, mathematical: int, stored: int | None = None) -> "StateSize":
        """A state kept in float32; ``stored`` is as many elements unless given."""
        stored = mathematical if stored is None else stored
        return cls(mathematical, stored, stored, 4 * stored)

    def bytes(self, activation_bytes: int) -> int:
        """Bytes stored, with keys and values of that many bytes an element: 2 under bfloat16 autocast, else 4."""
        return self.fixed_bytes + activation_bytes * (self.stored - self.fixed)

    def __add__(self, other: tuple) -> "StateSize":
        return StateSize(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def __mul__(self, factor: int) -> "StateSize":  # type: ignore[override]
        return StateSize(*(factor * mine for mine in self))


class Flops(NamedTuple):
    """Forward FLOPs per token, 2 per multiply-add of a matrix product.

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
