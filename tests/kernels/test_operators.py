"""An operator is called straight where only autograd listens, and through torch wherever something else does."""

import traceback
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from icl_eval.kernels.power.operators import define_operator

through_torch: list[bool] = []


def _product(x: Tensor, scale: float) -> Tensor:
    through_torch.append(any("torch/_ops" in frame.filename for frame in traceback.extract_stack()))
    return (scale * x.detach()).square()


def _setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.scale = inputs[1]


def _differentiate(ctx: Any, dy: Tensor) -> tuple:
    (x,) = ctx.saved_tensors
    return 2 * ctx.scale**2 * x * dy, None


product = define_operator(
    "tests_product",
    _product,
    lambda x, scale: torch.empty_like(x),
    setup_context=_setup_context,
    differentiate=_differentiate,
)


@register_flop_formula(torch.ops.icl_eval.tests_product)
def _flops(x: torch.Size, scale: float, **_: Any) -> int:
    return 2 * x.numel()


class Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.names.append(str(function))
        return function(*arguments, **(options or {}))


@pytest.fixture(autouse=True)
def _forget() -> None:
    through_torch.clear()


def test_values_and_gradients_are_those_of_the_function_either_way() -> None:
    x = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    for mode in (None, Recorder()):
        with mode or torch.enable_grad():
            y = product(x, 2.0)
            (dx,) = torch.autograd.grad(y.sum(), x)
        assert y.tolist() == [4.0, 16.0, 36.0]
        assert dx.tolist() == [8.0, -16.0, 24.0]
    assert "icl_eval.tests_product.default" in mode.names
    assert through_torch == [False, True]


def test_without_gradients_there_is_no_graph() -> None:
    x = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        assert product(x, 2.0).grad_fn is None
    assert product(torch.ones(3), 2.0).grad_fn is None
    assert product(x, 2.0).grad_fn is not None


def test_compilers_counters_and_fake_tensors_see_it() -> None:
    names: list[str] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> object:
        names.extend(str(node.target) for node in module.graph.nodes if node.op == "call_function")
        return module.forward

    x = torch.ones(3)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(lambda x: product(x, 2.0), backend=backend, fullgraph=True)(x), 4 * x)
    assert names == ["icl_eval.tests_product"]
    with FlopCounterMode(display=False) as counter:
        product(x, 2.0)
    assert counter.get_total_flops() == 6
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x)
    through_torch.clear()
    assert product(fake, 2.0).shape == x.shape
    assert not through_torch


@pytest.mark.parametrize("linear", [True, False], ids=["loss linear in the output", "square loss"])
def test_a_second_derivative_is_refused_and_not_wrong(linear: bool) -> None:
    x = torch.ones(3, requires_grad=True)
    y = product(x, 2.0)
    with pytest.raises(RuntimeError, match=r"tests_product has no second derivative.*use backend='chunked'"):
        torch.autograd.grad((y if linear else y.square()).sum(), x, create_graph=True)


@pytest.mark.parametrize("mode", [TorchFunctionMode, Recorder])
def test_modes_of_either_kind_see_it(mode: type) -> None:
    names: list[str] = []

    class Listener(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
            names.append(str(function))
            return function(*arguments, **(options or {}))

    with Listener() if mode is TorchFunctionMode else Recorder() as listener:
        product(torch.ones(3), 2.0)
    names += getattr(listener, "names", [])
    assert any("tests_product" in name for name in names)
