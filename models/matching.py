"""Matching models by state, parameters or FLOPs: what is asked, what solves it, and by how much it misses."""

import math
import warnings
from bisect import bisect_left
from collections.abc import Sequence
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
        settings = _settings(model, knob, self.context)

        def amount(setting: int) -> float:
            return self.measure(_turn(model, knob, setting))

        if len(settings) > 1 and amount(settings[0]) == amount(settings[len(settings) // 2]) == amount(settings[-1]):
            raise ValueError(f"{knob} does not change the {self.quantity} of {model.label}: solve for another knob")
        if knob == "window":  # of which there are many, along which everything grows
            above = bisect_left(settings, self.target, key=amount)
            settings = settings[max(above - 1, 0) : above + 1]
        nearest = _turn(model, knob, min(settings, key=lambda setting: abs(math.log(amount(setting) / self.target))))
        if abs(self.mismatch(nearest)) > FAR:
            warnings.warn(f"no {knob} of {model.label} comes close: {self.sentence(nearest)}", stacklevel=2)
        return nearest


def _settings(model: ModelConfig, knob: Knob, context: int) -> Sequence[int]:
    """What a knob can be turned to.

    Raises:
        ValueError: no mixer has the knob, or it can be turned to nothing.
    """
    field = {"head_dim": "num_heads"}.get(knob, knob)
    if not any(field in {f.name for f in fields(mixer)} for mixer in model.mixers):
        raise ValueError(f"no mixer of {model.label} has a {knob}: solve for another knob")
    match knob:
        case "window":
            return range(1, context + 1)
        case "degree":
            settings = range(1, MAX_DEGREE + 1)
        case "head_dim":
            settings = range(model.width, 0, -1)
        case "width":
            settings = range(1, MAX_WIDENING * model.width // model.mixers[0].head_dim + 1)
    possible = [setting for setting in settings if _possible(model, knob, setting)]
    if not possible:
        raise ValueError(f"no other {knob} goes with {model.label}")
    return possible


def _possible(model: ModelConfig, knob: Knob, setting: int) -> bool:
    try:
        _turn(model, knob, setting)
    except ValueError:
        return False
    return True


def _turn(model: ModelConfig, knob: Knob, setting: int) -> ModelConfig:
    mixers = []
    for mixer in model.mixers:
        names = {f.name for f in fields(mixer)}
        if knob == "width":
            mixer = replace(mixer, width=setting * mixer.head_dim, num_heads=setting)
        elif knob == "head_dim":
            mixer = replace(mixer, num_heads=setting)
        elif knob in names:
            mixer = replace(mixer, **cast(Any, {knob: setting}))
        mixers.append(mixer)
    return replace(model, mixers=tuple(mixers))


def _measure(model: ModelConfig, quantity: Quantity, context: int) -> float:
    match quantity:
        case "state":
            return model.state_size(context).mathematical
        case "parameters":
            return model.num_parameters()
        case "flops":
            return model.flops_per_token(context).total
