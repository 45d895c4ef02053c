"""Inputs and error measures shared by the kernel tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from icl_eval.kernels import expanded_dim, power_embedding

Result = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of power attention."""

    B: int = 2
    T: int = 65
    H: int = 2
    Hk: int = 2
    D: int = 8
    V: int = 8
    degree: int = 2
    normalization: str = "row_sum"
    gated: bool = True
    stateful: bool = True
    chunk_size: int | None = 16

    def with_(self, **changes: object) -> Case:
        return replace(self, **changes)  # type: ignore[arg-type]

    @property
    def options(self) -> dict[str, object]:
        return {"degree": self.degree, "normalization": self.normalization}

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float64, device: str = "cpu") -> Result:
        """Random q, k, v, log_g, and the initial S and z, as this case has them; gates and state at least float32."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        wide = torch.promote_types(dtype, torch.float32)
        state_dim = expanded_dim(self.D, self.degree)
        x = {"q": normal(self.B, self.T, self.H, self.D), "k": normal(self.B, self.T, self.Hk, self.D)}
        x["v"] = normal(self.B, self.T, self.Hk, self.V)
        x = {name: value.to(dtype) for name, value in x.items()}
        if self.gated:
            x["log_g"] = torch.nn.functional.logsigmoid(normal(self.B, self.T, self.Hk) + 2).to(wide)
        if self.stateful:
            # A state that keys and values produced, so that its normaliser is one that can occur.
            phi = torch.nn.functional.normalize(normal(self.B, self.Hk, 3, self.D), dim=-1)
            phi = power_embedding(phi * self.D**0.5, self.degree)
            x["S"] = (phi.transpose(-1, -2) @ normal(self.B, self.Hk, 3, self.V)).to(wide)
            if self.normalization == "row_sum":
                x["z"] = phi.sum(-2).to(wide)
            assert x["S"].shape[-2] == state_dim
        return {name: value.to(device) for name, value in x.items()}


def outputs_and_gradients(attention: Callable[..., object], case: Case, inputs: Result, **options: object) -> Result:
    """The output, final state, and the gradient of every input against fixed random cotangents.

    Cotangents are bfloat16 numbers, which every dtype holds: a kernel is not charged with the rounding of its inputs.
    """
    x = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    options = {**case.options, "chunk_size": case.chunk_size, **options}
    if case.stateful:
        options |= {"initial_state": (x["S"], x.get("z")), "return_state": True}
    returned = attention(x["q"], x["k"], x["v"], x.get("log_g"), **options)
    out: Result = {}
    if case.stateful:
        out["y"], (out["S"], z) = returned  # type: ignore[misc]
        if z is not None:
            out["z"] = z
    else:
        out["y"] = returned  # type: ignore[assignment]
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(t.shape, generator=generator).bfloat16().to(t.dtype).to(t.device) for t in out.values()]
    gradients = torch.autograd.grad(list(out.values()), list(x.values()), cotangents)
    return {name: t.detach() for name, t in out.items()} | {
        f"d{name}": gradient for name, gradient in zip(x, gradients, strict=True)
    }


def relative_errors(got: Result, expected: Result) -> dict[str, float]:
    """‖got - expected‖ / ‖expected‖ of each tensor in float64; absolute where the expected norm is zero."""
    assert got.keys() == expected.keys()
    errors = {}
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        wanted = value.double().cpu()
        norm = wanted.norm().item()
        difference = (got[name].double().cpu() - wanted).norm().item()
        errors[name] = difference / norm if norm else difference
    return errors


def assert_close(got: Result, expected: Result, tolerance: float) -> None:
    errors = relative_errors(got, expected)
    bad = {name: error for name, error in errors.items() if not error <= tolerance}
    assert not bad, f"relative errors above {tolerance}: {bad}"
