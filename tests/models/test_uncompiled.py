"""Functions that ``torch.compile`` passes by: none of their operations gets into a graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from icl_eval.models import GatedDeltaNet
from icl_eval.models.mixers.fla import base
from icl_eval.models.mixers.uncompiled import uncompiled

Counted = tuple[Callable, list[list[str]]]


@pytest.fixture
def counted() -> Counted:
    """A backend of ``torch.compile`` that notes the operations of its graphs, and its notes."""
    torch._dynamo.reset()
    graphs: list[list[str]] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable:
        graphs.append([node.name for node in module.graph.nodes if node.op.startswith("call")])
        return module.forward

    return backend, graphs


@pytest.mark.parametrize("called_before", [False, True], ids=["first call while compiling", "called before"])
def test_graphs_end_before_the_function_and_begin_after_it(called_before: bool, counted: Counted) -> None:
    backend, graphs = counted

    @uncompiled(recursive=True)
    def between(x: Tensor) -> Tensor:
        return x.exp()

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return between(x.sin()).cos()

    layer, x = Layer(), torch.linspace(0, 1, 5)
    if called_before:
        layer(x)
    layer.compile(backend=backend)
    for _ in range(2):
        torch.testing.assert_close(layer(x), x.sin().exp().cos())
    assert graphs == [["sin"], ["cos"]]


def test_the_recurrence_of_a_compiled_mixer_is_in_no_graph(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, graphs = counted
    recur, calls = base.linear_recurrence, []

    def seen(*args: Tensor, **kwargs: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(torch.compiler.is_compiling())
        return recur(*args, **kwargs)

    monkeypatch.setattr(base, "linear_recurrence", seen)
    torch.manual_seed(0)
    mixer, x = GatedDeltaNet(width=16, num_heads=2).build(), torch.randn(1, 8, 16)
    expected, _ = mixer(x)
    mixer.compile(backend=backend)
    torch.testing.assert_close(mixer(x)[0], expected)
    assert calls == [False, False]
    assert graphs
