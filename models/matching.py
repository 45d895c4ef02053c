"""Matching models by state, parameters or FLOPs: what is asked, what solves it, and by how much it misses."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from icl_eval.config import Config
from icl_eval.models.language_model import ModelConfig

Quantity = Literal["state", "parameters", "flops"]
Knob = Literal["window", "degree", "head_dim", "width"]
QUANTITIES = {"state": "elements of state", "parameters": "parameters", "flops": "FLOPs per token"}
KNOBS = ("window", "degree", "head_dim", "width")
FAR = 0.1
"""Relative mismatch of the nearest variant that is worth a warning."""
MAX_DEGREE = 8
MAX_WIDENING = 8


@dataclass(frozen=True, kw_only=True)
class Match(Config):
    """What a model is to have as much of as another.

    ``Match.of(reference, "state", context=1024).solve(model, "window")`` is ``model`` with the window that does it.
    Solving takes what comes nearest, and rarely hits: an arm that keeps its matches has them shown with what it really
    comes to.

    Attributes:
        quantity: ``"state"`` (mathematical elements of one sequence, all layers), ``"parameters"`` or ``"flops"``
            (forward FLOPs per token).
        target: how much.
        context: tokens of context at which state and FLOPs are taken.
    """

    quantity: Quantity
    target: float
    context: int

    def __post_init__(self) -> None:
        self.require(self.target > 0, "target", "positive")
        self.require(self.context >= 1, "context", "at least 1 token")

    @classmethod
    def of(cls, reference: ModelConfig, quantity: Quantity, *, context: int) -> "Match":
        """As much as ``reference`` has."""
        return cls(quantity=quantity, target=_measure(reference, quantity, context), context=context)

    def measure(self, model: ModelConfig) -> float:
        """How much of the quantity a model has."""
        return _measure(model, self.quantity, self.context)

    def mismatch(self, model: ModelConfig) -> float:
        """(had - asked) / asked."""
        return self.measure(model) / self.target - 1

    def sentence(self, model: ModelConfig) -> str:
        """What was asked and what a model has."""
        missed = self.mismatch(model)
        how = "exactly as asked" if missed == 0 else f"{missed:+.2%} of the {self.target:,.0f} asked"
        return f"{self.measure(model):,.0f} {QUANTITIES[self.quantity]} at context {self.context:,}, {how}"

    def solve(self, model: ModelConfig, knob: Knob) -> ModelConfig:
        """The variant of ``model`` that comes nearest, by ratio; warns where that misses by more than :data:`FAR`.

        Args:
            model: everything but the knob stays as it is here.
            knob: ``"window"`` or ``"degree"`` of the mixers that have one; ``"head_dim"``, by the number of heads at
                the same width; or ``"width"``, by the number of heads at the same size of heads.

        Raises:
            ValueError: no mixer has the knob, or turning it does not change the quantity.
        """
        if knob not in KNOBS:
            raise ValueError(f"knob = {knob!r}: must be one of {', '.join(KNOBS)}")
        variants = _Variants(model, knob, self.context)
        candidates = self._around_target(variants) if knob == "window" else variants
        nearest = min(candidates, key=lambda found: abs(math.log(self.measure(found) / self.target)))
        if len(variants) > 1 and len({self.measure(variants[at]) for at in (0, len(variants) // 2, -1)}) == 1:
            raise ValueError(f"{knob} does not change the {self.quantity} of {model.label}: solve for another knob")
        if abs(self.mismatch(nearest)) > FAR:
            warnings.warn(f"no {knob} of {model.label} comes close: {self.sentence(nearest)}", stacklevel=2)
        return nearest

    def _around_target(self, variants: Sequence[ModelConfig]) -> Iterator[ModelConfig]:
        """The last variant below the target and the first at or above it, of many along which the quantity grows."""
        low, high = 0, len(variants) - 1
        while low < high:
            middle = (low + high) // 2
            if self.measure(variants[middle]) < self.target:
                low = middle + 1
            else:
                high = middle
        yield variants[low]
        if low > 0:
            yield variants[low - 1]


class _Variants(Sequence[ModelConfig]):
    """The variants of a model along a knob, made when read; along windows state, parameters and FLOPs grow."""

    def __init__(self, model: ModelConfig, knob: Knob, context: int):
        self.model, self.knob = model, knob
        field = {"head_dim": "num_heads"}.get(knob, knob)
        if not any(field in {f.name for f in fields(mixer)} for mixer in model.mixers):
            raise ValueError(f"no mixer of {model.label} has a {knob}: solve for another knob")
        self.settings = [setting for setting in self._settings(context) if self._possible(setting)]
        if not self.settings:
            raise ValueError(f"no other {knob} goes with {model.label}")

    def _settings(self, context: int) -> Sequence[int]:
        width, head_dim = self.model.width, self.model.mixers[0].head_dim
        match self.knob:
            case "window":
                return range(1, context + 1)
            case "degree":
                return range(1, MAX_DEGREE + 1)
            case "head_dim":
                return [heads for heads in range(width, 0, -1) if width % heads == 0]
            case "width":
                return range(1, MAX_WIDENING * width // head_dim + 1)

    def _possible(self, setting: int) -> bool:
        if self.knob == "window":
            return True
        try:
            self._turn(setting)
        except ValueError:
            return False
        return True

    def _turn(self, setting: int) -> ModelConfig:
        mixers = []
        for mixer in self.model.mixers:
            names = {f.name for f in fields(mixer)}
            if self.knob == "width":
                mixer = replace(mixer, width=setting * mixer.head_dim, num_heads=setting)
            elif self.knob == "head_dim":
                mixer = replace(mixer, num_heads=setting)
            elif self.knob in names:
                mixer = replace(mixer, **cast(Any, {self.knob: setting}))
            mixers.append(mixer)
        return replace(self.model, mixers=tuple(mixers))

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self._turn(self.settings[index])

    def __len__(self) -> int:
        return len(self.settings)


def _measure(model: ModelConfig, quantity: Quantity, context: int) -> float:
    match quantity:
        case "state":
            return model.state_size(context).mathematical
        case "parameters":
            return model.num_parameters()
        case "flops":
            return model.flops_per_token(context).total
