"""``icl-eval task check``: is a task what it says, and can it be learned?"""

import random
import time
from collections.abc import Iterator
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer
from rich.console import Console
from torch import Tensor

from icl_eval.commands.findings import Finding, passed, print_finding
from icl_eval.config import lookup
from icl_eval.measure import ScoredLoss
from icl_eval.models import ModelConfig, Softmax, Transformer
from icl_eval.presets import defaults_in, load_preset
from icl_eval.tasks import TASKS, Batch, Source, Task

app = typer.Typer(help="Check tasks.", no_args_is_help=True, add_completion=False)
TOKENS_PER_STEP = 4096
FAST_TOKENS_PER_SECOND = 2e6
SHOWN = 20
HELDOUT_BATCHES = 8


@app.callback()
def task() -> None:
    """Check tasks."""


@app.command()
def check(
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task's name, or a Python file of yours.")],
    seconds: Annotated[float, typer.Option(help="Time to train a small softmax model; 0 leaves it out.")] = 60.0,
) -> None:
    """Draw samples, verify shapes, determinism, leakage and optimum, time generation, and train a small model.

    The status is 1 if a check fails.
    """
    if seconds < 0:
        raise ValueError(f"--seconds {seconds:g}: must be at least 0")
    console = Console()
    own = defaults_in(task, Task) if task.endswith(".py") else [_built_in(task)]  # type: ignore[type-abstract]
    failed = False
    for each in own or load_preset(task).tasks():
        console.print(f"[bold]{each.name}[/]: {each}", highlight=False, soft_wrap=True)
        console.print(sample(each), highlight=False, markup=False, soft_wrap=True)
        for finding in check_task(each, seconds):
            print_finding(console, finding)
            failed |= finding.verdict == "FAIL"
    if failed:
        raise typer.Exit(1)


def _built_in(name: str) -> Task:
    """A task of ours with its defaults.

    Raises:
        ValueError: there is none of this name, or it cannot do without a field that has no default.
    """
    task = lookup(TASKS, name, "task")
    try:
        return task()
    except TypeError as error:
        raise ValueError(
            f"the task {name!r} cannot be checked with its defaults alone ({error}); name a Python file with it"
        ) from error


def check_task(task: Task, seconds: float) -> Iterator[Finding]:
    """All checks in turn; the last ones train for ``seconds``, and are left out where that is 0."""
    source = task.build(0)
    batch = source.batch("train", 0, 8)
    shapes = _shapes(task, batch)
    yield shapes
    if shapes.verdict == "FAIL":
        return
    yield _determinism(task)
    yield _splits(task)
    yield _target_in_sight(batch)
    yield _memory(task)
    yield _bounds(task)
    yield _speed(source, task.seq_len)
    if seconds > 0:
        yield from _learning(task, source, seconds)


def sample(task: Task) -> str:
    """The first tokens of a training sequence as text, a row a field; dots where nothing is scored."""
    batch = task.build(0).batch("train", 0, 1)
    first = int(batch.scored[0].int().argmax())
    start = max(0, first - SHOWN // 2) if first >= SHOWN else 0
    shown = slice(start, start + SHOWN)
    scored = batch.scored[0, shown].tolist()
    rows = {
        "tokens": [str(token) for token in batch.tokens[0, shown].tolist()],
        "targets": [_short(x) if s else "." for x, s in zip(batch.targets[0, shown].tolist(), scored, strict=True)],
        "scored": [str(int(s)) for s in scored],
        "position": [str(p) if s else "" for p, s in zip(batch.position[0, shown].tolist(), scored, strict=True)],
    }
    if batch.inputs is not None:
        norms = batch.inputs[0, shown].norm(dim=-1).tolist()
        rows["|inputs|"] = [_short(norm) for norm in norms]
    width = max(len(cell) for cells in rows.values() for cell in cells)
    lines = [f"  {name:9} {' '.join(cell.rjust(width) for cell in cells)}" for name, cells in rows.items()]
    return "\n".join([f"  from token {start} of {task.seq_len:,}:", *lines])


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _shapes(task: Task, batch: Batch) -> Finding:
    B, T = 8, task.seq_len
    targets = torch.int64 if task.loss == "cross_entropy" else torch.float32
    wanted = {"tokens": torch.int64, "targets": targets, "scored": torch.bool, "position": torch.int64}
    wrong = [
        f"{name} is {getattr(batch, name).dtype} {list(getattr(batch, name).shape)}, not {dtype} [{B}, {T}]"
        for name, dtype in wanted.items()
        if getattr(batch, name).shape != (B, T) or getattr(batch, name).dtype != dtype
    ]
    inputs = None if batch.inputs is None else (batch.inputs.shape, batch.inputs.dtype)
    if inputs != (((B, T, task.input_dim), torch.float32) if task.input_dim else None):
        wrong.append(f"inputs are {inputs}, but input_dim = {task.input_dim}")
    if batch.document.shape != (B,):
        wrong.append(f"document is {list(batch.document.shape)}, not [{B}]")
    if not wrong:
        wrong += _values(task, batch)
    return passed("shapes and ranges", not wrong, "; ".join(wrong) or f"[B, {T:,}], {_scored_share(batch)} scored")


def _values(task: Task, batch: Batch) -> Iterator[str]:
    targets, position = batch.targets[batch.scored], batch.position[batch.scored]
    if not _within(batch.tokens, task.num_tokens):
        yield f"tokens lie outside [0, num_tokens = {task.num_tokens})"
    if task.loss == "cross_entropy" and not _within(targets, task.num_tokens):
        yield f"scored targets lie outside [0, num_tokens = {task.num_tokens})"
    if not targets.isfinite().all() or (batch.inputs is not None and not batch.inputs.isfinite().all()):
        yield "targets or inputs are not finite"
    if not _within(position, task.num_positions):
        yield f"scored positions lie outside [0, num_positions = {task.num_positions})"
    if not batch.scored.any(dim=1).all():
        yield "a sequence has no scored token"


def _within(values: Tensor, end: int) -> bool:
    return bool(((values >= 0) & (values < end)).all())


def _scored_share(batch: Batch) -> str:
    return f"{batch.scored.double().mean().item():.1%}"


def _equal(first: Batch, second: Batch) -> bool:
    pairs = zip(first, second, strict=True)
    return all(a is b if a is None or b is None else torch.equal(a, b) for a, b in pairs)


def _determinism(task: Task) -> Finding:
    """The same arguments give the same batch, whatever was drawn before, here or from global random states."""
    source = task.build(0)
    first = [source.batch("train", index, 4) for index in (5, 0)]
    for seed_globally in (np.random.seed, random.seed, torch.manual_seed):
        seed_globally(12345)
    again = task.build(0)
    second = [again.batch("train", index, 4) for index in (0, 5)][::-1]
    same = all(map(_equal, first, second))
    wrong = "the same seed, split and index gave another batch: draw from the generator given, and from no global state"
    return passed("determinism", same, "batches repeat" if same else wrong)


def _splits(task: Task) -> Finding:
    """Held-out sequences are those of every seed and batch size; training sequences are nobody else's."""
    one, two = task.build(0), task.build(1)
    wrong = []
    heldout = one.batch("heldout", 0, 8)
    if not _equal(heldout, two.batch("heldout", 0, 8)):
        wrong.append("held-out sequences depend on the seed, so arms cannot be paired")
    if not torch.equal(heldout.tokens[4:], task.build(0).batch("heldout", 1, 4).tokens):
        wrong.append("held-out sequences depend on the batch size")
    batches = (one.batch("train", 0, 8), one.batch("train", 1, 8), two.batch("train", 0, 8), heldout)
    rows = [_rows(batch) for batch in batches]
    if len(set().union(*rows)) < sum(map(len, rows)):
        wrong.append("sequences repeat between batches, seeds or splits")
    return passed("splits", not wrong, "; ".join(wrong) or "held-out is shared, training is not, and none repeats")


def _rows(batch: Batch) -> set[bytes]:
    inputs = [b""] * len(batch.tokens) if batch.inputs is None else [row.numpy().tobytes() for row in batch.inputs]
    return {tokens.numpy().tobytes() + row for tokens, row in zip(batch.tokens, inputs, strict=True)}


def _target_in_sight(batch: Batch) -> Finding:
    """The target must not be the very token that it is predicted at."""
    share = (batch.tokens == batch.targets)[batch.scored].double().mean().item()
    detail = f"{share:.1%} of scored targets equal the token they are predicted from"
    return passed("targets in sight", share < 0.9, detail + ("" if share < 0.9 else ": are targets shifted by one?"))


def _memory(task: Task) -> Finding:
    bits = task.state_bits
    return Finding("state", "ok" if bits else "note", f"{bits:,.0f} bits needed" if bits else "state_bits is not known")


def _bounds(task: Task) -> Finding:
    position = np.arange(task.num_positions)
    optimum, chance = task.optimum(position), task.chance()
    if optimum is None:
        return Finding("optimum", "note", f"not known; chance is {chance:.3f} {task.loss_unit}")
    wrong = []
    if np.shape(optimum) != position.shape or not np.isfinite(optimum).all():
        wrong.append("optimum(position) must be a finite number for every position")
    elif optimum.min() < 0 or (optimum > chance + 0.01).any():
        wrong.append(f"the optimum leaves [0, chance = {chance:.3f}]: {optimum.min():.3f} to {optimum.max():.3f}")
    span = f"{optimum[-1]:.3f} at the last position, chance {chance:.3f} {task.loss_unit}"
    return passed("optimum", not wrong, "; ".join(wrong) or span)


def _speed(source: Source, seq_len: int, seconds: float = 1.0) -> Finding:
    batch_size = max(1, 8 * TOKENS_PER_STEP // seq_len)
    start, used, index = time.perf_counter(), time.process_time(), 0
    while index < 2 or time.perf_counter() - start < seconds:
        source.batch("train", index, batch_size)
        index += 1
    rate = index * batch_size * seq_len / max(time.process_time() - used, 1e-9)
    detail = f"{rate / 1e6:.1f} M tokens/s of processor time, batches of {batch_size}"
    return passed("generation", rate >= FAST_TOKENS_PER_SECOND, detail, otherwise="note")


class _Losses(NamedTuple):
    """Losses of scored held-out tokens: their mean by document, and that of the optimum at their positions."""

    model: np.ndarray
    optimum: np.ndarray | None

    def margin(self, other: float | np.ndarray) -> tuple[float, float]:
        """Mean of model less other, and four standard errors of it."""
        difference = self.model - other
        return float(difference.mean()), 4 * float(difference.std()) / len(difference) ** 0.5


def _learning(task: Task, source: Source, seconds: float) -> Iterator[Finding]:
    """Train a small softmax model; hold its losses against chance, the optimum, and foreign contexts."""
    model, steps = _train(task, source, seconds)
    losses, foreign = _evaluate(task, source, model)
    chance, unit = task.chance(), task.loss_unit
    gain, error = losses.margin(chance)
    bound = "" if losses.optimum is None else f", optimum {losses.optimum.mean():.3f}"
    detail = f"{losses.model.mean():.3f} {unit} after {steps} steps; chance {chance:.3f}{bound}"
    reach = chance - (0.0 if losses.optimum is None else float(losses.optimum.mean()))
    learned = gain < -max(error, 0.05 * reach)
    detail += "" if learned else ": not learned; give it more --seconds, or make the task easier"
    yield passed("learned by a small softmax model", learned, detail)
    if losses.optimum is not None:
        excess, error = losses.margin(losses.optimum)
        detail = (
            f"the model stays {excess:.3f} above it" if excess >= -error else f"the model is {-excess:.3f} below it"
        )
        yield passed("optimum is a bound", excess >= -error - 1e-6, detail)
    below, error = foreign.margin(chance)
    detail = f"{foreign.model.mean():.3f} {unit} with the context of another sequence; chance {chance:.3f}"
    if task.optimum(np.arange(1)) is None:
        yield Finding("leakage", "note", detail + " (text can be guessed without its context)")
    else:
        yield passed("leakage", below >= -error - 0.02, detail)


def _train(task: Task, source: Source, seconds: float) -> tuple[ScoredLoss, int]:
    config = ModelConfig(
        vocab_size=task.num_tokens,
        num_layers=2,
        mixers=(Softmax(width=64, num_heads=2, rotary_base=None),),
        backbone=Transformer(mlp_ratio=2.0, short_conv=4),
        input_dim=task.input_dim,
        loss=task.loss,
    )
    model = ScoredLoss(config.build(0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, betas=(0.9, 0.95), weight_decay=0.1)
    batch_size, start, step = max(4, TOKENS_PER_STEP // task.seq_len), time.perf_counter(), 0
    while (spent := (time.perf_counter() - start) / seconds) < 1 or step == 0:
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1.0, 20 * spent + 0.01, 1.05 - spent)
        batch = source.batch("train", step, batch_size)
        loss = _loss(model, batch)[batch.scored].mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
    return model.eval(), step


@torch.no_grad()
def _evaluate(task: Task, source: Source, model: ScoredLoss) -> tuple[_Losses, _Losses]:
    """Losses on held-out sequences, and on their last scored token behind the context of another sequence."""
    batch_size = max(4, min(32, 2 * TOKENS_PER_STEP // task.seq_len))
    own, bound, foreign = [], [], []
    for index in range(HELDOUT_BATCHES):
        batch = source.batch("heldout", index, batch_size)
        own += [row[scored].mean().item() for row, scored in zip(_loss(model, batch), batch.scored, strict=True)]
        for position, scored in zip(batch.position, batch.scored, strict=True):
            optimum = task.optimum(position[scored].numpy())
            bound.append(np.nan if optimum is None else optimum.mean())
        last = task.seq_len - 1 - batch.scored.flip(1).int().argmax(1)
        here = torch.arange(task.seq_len) == last[:, None]
        mixed = batch._replace(
            tokens=torch.where(here, batch.tokens, batch.tokens.roll(1, 0)),
            inputs=None
            if batch.inputs is None
            else torch.where(here[..., None], batch.inputs, batch.inputs.roll(1, 0)),
        )
        foreign += _loss(model, mixed)[here].tolist()
    known = not np.isnan(bound).any()
    return _Losses(np.array(own), np.array(bound) if known else None), _Losses(np.array(foreign), None)


def _loss(model: ScoredLoss, batch: Batch) -> Tensor:
    return model(batch.tokens, batch.targets, batch.inputs)[0]
