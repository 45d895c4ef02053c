"""One optimiser step: the same whatever saves memory or time, and harmless where the gradient is not finite."""

import copy
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from icl_eval import Arm
from icl_eval.presets import load_preset
from icl_eval.run import make_accelerator
from icl_eval.step import prepare, rows_of, train_step, warm_up

TINY = load_preset(str(Path(__file__).parent / "tiny.py"))


def trained(arm: Arm, steps: int = 3) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of the first steps, and the parameters after them."""
    accelerator = make_accelerator("cpu")
    model, optimizer = prepare(arm, 0, accelerator)
    source = arm.task.build(0)
    batches = (source.batch("train", index, arm.training.batch_size) for index in range(steps))
    rows = (rows_of(batch, accelerator) for batch in batches)
    losses = [train_step(model, optimizer, each, arm, accelerator).loss.item() for each in rows]
    return losses, model.state_dict()


@pytest.fixture
def eager_compiler() -> Iterator[SimpleNamespace]:
    """A compiler that counts graphs and runs them as they stand."""
    counter = SimpleNamespace(graphs=0)

    def count(graph: torch.fx.GraphModule, _: list) -> object:
        counter.graphs += 1
        return graph.forward

    before = torch.compiler.get_default_backend()
    torch.compiler.reset()
    torch.compiler.set_default_backend(count)
    yield counter
    torch.compiler.set_default_backend(before)
    torch.compiler.reset()


@pytest.mark.parametrize("index", range(3), ids=[arm.name for arm in TINY.arms])
@pytest.mark.parametrize(
    "options",
    [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"activation_checkpointing": True}],
    ids=["rows one by one", "uneven rows", "activation checkpointing"],
)
def test_saving_memory_changes_nothing(index: int, options: dict) -> None:
    arm = TINY.arms[index]
    losses, weights = trained(arm)
    losses_saving, weights_saving = trained(replace(arm, training=replace(arm.training, **options)))
    assert losses_saving == pytest.approx(losses, rel=1e-5)
    assert weights_saving.keys() == weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weights_saving[name], weight, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_equal_layers_share_one_graph(activation_checkpointing: bool, eager_compiler: SimpleNamespace) -> None:
    arm = replace(TINY.arms[0], model=replace(TINY.arms[0].model, num_layers=3))
    losses, _ = trained(arm)
    training = replace(arm.training, compile=True, activation_checkpointing=activation_checkpointing)
    losses_compiled, _ = trained(replace(arm, training=training))
    assert losses_compiled == pytest.approx(losses, rel=1e-5)
    assert eager_compiler.graphs == 2  # a layer's, and the loss's


def test_every_arm_of_a_process_is_compiled_whole(eager_compiler: SimpleNamespace) -> None:
    """torch gives up on a function after eight graphs; four arms here make twelve of a layer, and of the loss."""
    accelerator = make_accelerator("cpu")
    for number in range(1, 5):
        arm = replace(TINY.arms[0], training=replace(TINY.arms[0].training, compile=True))
        model, _ = prepare(arm, 0, accelerator)
        for length in (8, 16, 24):
            batch = arm.task.build(0).batch("train", 0, 2)
            model(batch.tokens[:, :length], batch.targets[:, :length])
        assert eager_compiler.graphs == 6 * number


def test_pieces_of_a_loss_share_graphs_and_none_runs_without(
    eager_compiler: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole pieces and a last one, with gradients and without, at two lengths, of a model of one layer."""
    monkeypatch.setattr("icl_eval.models.losses.CHUNK_TOKENS", 12)
    training = replace(TINY.arms[0].training, compile=True)
    arm = replace(TINY.arms[0], model=replace(TINY.arms[0].model, num_layers=1), training=training)
    model, _ = prepare(arm, 0, make_accelerator("cpu"))
    for length in (16, 20):
        batch = [x[:, :length] for x in arm.task.build(0).batch("train", 0, 2).read]
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
            model(*batch, weights=torch.ones_like(batch[1], dtype=torch.float32)).backward()
            with torch.no_grad():
                model(*batch)
    graphs = eager_compiler.graphs
    layers = 2 * 2
    assert graphs - layers == 2 * 3, "whole pieces of 12 share one with and one without; the last of 8 and of 4 do not"


@pytest.mark.usefixtures("eager_compiler")
def test_a_compiled_model_is_saved_and_copied_like_any_other() -> None:
    arm = TINY.arms[0]
    plain, _ = prepare(arm, 0, make_accelerator("cpu"))
    model, _ = prepare(replace(arm, training=replace(arm.training, compile=True)), 0, make_accelerator("cpu"))
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert pickle.dumps(model)
    batch = arm.task.build(0).batch("train", 0, 2).read
    assert torch.equal(copy.deepcopy(model)(*batch)[0], plain(*batch)[0])


@pytest.mark.parametrize("compiled", [False, True])
def test_warming_up_changes_nothing(compiled: bool, eager_compiler: SimpleNamespace) -> None:
    """A compiled model first reads a few tokens as it stands, for its kernels to check themselves."""
    arm, accelerator = TINY.arms[-1], make_accelerator("cpu")
    arm = replace(arm, training=replace(arm.training, compile=compiled))
    model, optimizer = prepare(arm, 0, accelerator)
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    graphs_before: list[int] = []
    model.register_forward_pre_hook(lambda *_: graphs_before.append(eager_compiler.graphs))
    warm_up(model, rows_of(arm.task.build(0).batch("train", 0, 4), accelerator), arm, accelerator)
    assert graphs_before == ([0, 0] if compiled else [0])
    assert eager_compiler.graphs == 2 * compiled
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert optimizer.state_dict()["state"] == {}
    assert torch.equal(torch.get_rng_state(), random)


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_count() -> None:
    arm, accelerator = TINY.arms[0], make_accelerator("cpu")
    model, optimizer = prepare(arm, 0, accelerator)
    rows = rows_of(arm.task.build(0).batch("train", 0, 4), accelerator)
    assert train_step(model, optimizer, rows, arm, accelerator).skipped == 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [{k: v.clone() for k, v in slots.items()} for slots in optimizer.state_dict()["state"].values()]
    hook = next(model.parameters()).register_hook(lambda gradient: gradient * float("inf"))
    result = train_step(model, optimizer, rows, arm, accelerator)
    assert result.loss.isfinite()
    assert result.skipped == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for slots, old in zip(optimizer.state_dict()["state"].values(), moments, strict=True):
        assert all(torch.equal(slots[k], old[k]) for k in slots)
    hook.remove()
    assert train_step(model, optimizer, rows, arm, accelerator).skipped == 0
    assert not torch.equal(next(iter(model.state_dict().values())), next(iter(before.values())))
