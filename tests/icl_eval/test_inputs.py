"""Real vectors and numbers through the whole path: model, costs, training, measuring, tables and figures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from icl_eval import Arm, Budget, Experiment, Training, load_runs
from icl_eval.models import ModelConfig, Power, Softmax, Transformer
from icl_eval.plots import plot_all
from icl_eval.run import run_experiment
from icl_eval.tables import results_table
from icl_eval.tasks import Classification, Regression, Task

TASKS: dict[str, Task] = {
    "regression": Regression(dim=3, seq_len=24, noise=0.5),
    "classification": Classification(num_classes=3, dim=4, noise=0.3, seq_len=24),
}
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


def model_of(task: Task) -> ModelConfig:
    return ModelConfig(
        vocab_size=task.num_tokens,
        num_layers=1,
        mixers=(Power(width=32, num_heads=2),),
        backbone=Transformer(mlp_ratio=2.0, short_conv=2),
        input_dim=task.input_dim,
        loss=task.loss,
    )


@every_task
def test_decoding_equals_the_forward_pass(task: Task) -> None:
    model, batch = model_of(task).build().double(), task.build(0).batch("train", 0, 2)
    inputs = batch.inputs.double()  # type: ignore[union-attr]
    whole, _ = model(batch.tokens, None, inputs)
    _, state = model(batch.tokens[:, :9], None, inputs[:, :9])
    for t in range(9, 24):
        outputs, state = model.step(batch.tokens[:, t], state, inputs[:, t])
        torch.testing.assert_close(outputs, whole[:, t])
    nll, correct = model.nll(batch.tokens, batch.targets, inputs)
    if task.loss == "squared_error":
        torch.testing.assert_close(nll, (whole[..., 0] - batch.targets) ** 2)
        assert correct.isnan().all()
    else:
        torch.testing.assert_close(nll, -whole.log_softmax(-1).gather(-1, batch.targets[..., None])[..., 0])


@every_task
def test_costs_include_projection_and_head(task: Task) -> None:
    config, batch = model_of(task), task.build(0).batch("train", 0, 1)
    model = config.build()
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.nll(batch.tokens, batch.targets, batch.inputs)
    assert counter.get_total_flops() / task.seq_len == config.flops_per_token(task.seq_len, causal=False).total
    assert config.num_parameters() == sum(p.numel() for p in model.parameters())


def test_arms_must_match_their_task() -> None:
    task = TASKS["regression"]
    with pytest.raises(ValueError, match=r"arm 'a': ModelConfig.input_dim = 0, but the task 'regression' has 4"):
        Arm(name="a", task=task, model=ModelConfig(vocab_size=2), budget=Budget(tokens=1e4))
    with pytest.raises(ValueError, match=r"ModelConfig.loss = 'cross_entropy', but .* 'squared_error'"):
        Arm(name="a", task=task, model=ModelConfig(vocab_size=2, input_dim=4), budget=Budget(tokens=1e4))
    with pytest.raises(ValueError, match="tied_embeddings = True: must be False with loss = 'squared_error'"):
        ModelConfig(loss="squared_error", tied_embeddings=True, mixers=(Softmax(),))


def test_both_tasks_are_learned_in_context(tmp_path: Path) -> None:
    training = Training(batch_size=32, learning_rate=1e-2, final_learning_rate=1e-3, warmup_tokens=10_000)
    arms = tuple(
        Arm(name=name, task=task, model=model_of(task), training=training, budget=Budget(tokens=250_000))
        for name, task in TASKS.items()
    )
    experiment = Experiment(name="inputs", question="?", arms=arms, eval_sequences=128, snapshots=2)
    runs = load_runs(run_experiment(experiment, tmp_path, device="cpu"))
    for run in runs:
        task, positions = run.arm.task, run.positions
        assert positions is not None
        loss = positions.nll_sum[-1] / positions.count
        late = slice(task.num_positions // 2, None)
        assert loss[late].mean() < 0.75 * task.chance()
        assert loss[late].mean() > task.optimum(np.arange(task.num_positions))[late].mean() * 0.95
    assert np.isnan(runs[0].positions.correct[-1]).any()
    assert not np.isnan(runs[1].positions.correct).any()
    table = results_table(runs)
    assert "squared error, nats" in str(table.columns[8].header)
    assert next(iter(table.columns[10].cells)) == "-"
    assert all(file.stat().st_size > 0 for file in plot_all(runs, tmp_path))
