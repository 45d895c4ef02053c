"""Rotary positions: right against complex numbers in float64, and no angle is formed in a compiled graph."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from icl_eval.models import Power, Softmax
from icl_eval.models.mixers.rotary import constant_rotary_table, rotary_table, rotate


@pytest.mark.parametrize("shape", [(1, 1), (2, 3)], ids=["one position a token", "positions of each head"])
@pytest.mark.parametrize("table", [rotary_table, constant_rotary_table], ids=["formula", "operator"])
def test_pairs_of_features_turn_like_complex_numbers(shape: tuple[int, int], table: Callable) -> None:
    torch.manual_seed(0)
    B, H = 2, 3
    x = torch.randn(B, 5, H, 8, dtype=torch.float64)
    position = 100 * torch.rand(shape[0], 5, shape[1], dtype=torch.float64)
    frequency = 1000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * position[..., None] * frequency)
    y = rotate(x, *table(position, 8, 1000.0, torch.float64))
    torch.testing.assert_close(y, torch.cat([turned.real, turned.imag], dim=-1))


def test_float64_positions_keep_their_fractions_in_a_float32_table() -> None:
    position = torch.tensor([2.0**20 + 0.25], dtype=torch.float64)
    cos, sin = rotary_table(position, 8, 1000.0, torch.float32)
    angle = position[:, None] * 1000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    assert cos.dtype == sin.dtype == torch.float32
    torch.testing.assert_close(
        torch.stack([cos, sin]).double(), torch.stack([angle.cos(), angle.sin()]), rtol=0, atol=1e-6
    )


def test_the_table_is_an_operator_as_torch_wants_it() -> None:
    arguments = (torch.arange(6.0)[:, None], 8, 1000.0, torch.float32)
    torch.library.opcheck(torch.ops.icl_eval.rotary_table.default, arguments)


def test_a_compiled_mixer_leaves_angles_to_the_operator() -> None:
    operations: list[str] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> object:
        operations.extend(str(node.target) for node in module.graph.nodes if node.op.startswith("call"))
        return module.forward

    torch._dynamo.reset()
    mixer, x = Softmax(width=16, num_heads=2).build(), torch.randn(1, 8, 16)
    expected, _ = mixer(x)
    mixer.compile(backend=backend, fullgraph=True)
    torch.testing.assert_close(mixer(x)[0], expected)
    assert sum("rotary_table" in name for name in operations) == 1
    assert not any(name.endswith(("cos", "sin", "pow")) for name in operations)


def test_learned_rates_are_differentiated_forwards_and_in_batches_too() -> None:
    torch.manual_seed(0)
    mixer = Power(width=8, num_heads=2, learned_rotary_rate=True).build().double()
    torch.nn.init.normal_(mixer.rate_proj.weight)
    x, direction = torch.randn(2, 3, 6, 8, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        return mixer(x[None])[0].square().sum()

    step = 1e-6 * direction
    slopes = [(loss(row + d) - loss(row - d)) / 2e-6 for row, d in zip(x, step, strict=True)]
    for row, d, slope in zip(x, direction, slopes, strict=True):
        torch.testing.assert_close(torch.func.jvp(loss, (row,), (d,))[1], slope, rtol=1e-6, atol=1e-6)
    batched = torch.func.grad(lambda x: torch.func.vmap(loss)(x).sum())(x)
    torch.testing.assert_close((batched * direction).sum(), sum(slopes), rtol=1e-6, atol=1e-6)
