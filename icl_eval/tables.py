"""Tables: what an experiment will cost, what it found, and the paper's two tables of arithmetic."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from rich.table import Table

from icl_eval.arithmetic import (
    PAPER_STATE,
    PAPER_WSFR,
    WSFR_CONTEXTS,
    WSFR_MIXERS,
    recurrent_linear_flops,
    state_rows,
    wsfr,
)
from icl_eval.experiment import Arm, Experiment
from icl_eval.gates import LONG_GAIN
from icl_eval.groups import Group, group_runs, panel_titles
from icl_eval.models import Flops, ModelConfig
from icl_eval.run_folder import Run
from icl_eval.schedule import make_plan
from icl_eval.statistics import Estimate, best_context_loss, context_gain, overall
from icl_eval.tasks import Task
from icl_eval.tasks.base import GeneratedTask

_COST_COLUMNS = ("arm", "param-\neters", "state\n/layer", "state\n/model", "weight:\nstate")


def plan_table(experiment: Experiment) -> Table:
    """The arms with their costs and matched budgets, before anything is trained."""
    columns = (*_COST_COLUMNS[:4], "bytes\n(bf16)", _COST_COLUMNS[4])
    table = new_table(*columns, "(paper's\ncount)", "steps", "tokens", "FLOPs", "mismatch")
    for task, arms in experiment.tasks().items():
        for arm in arms:
            model = arm.model
            state = model.state_size(task.seq_len)
            table.add_row(
                arm.name,
                f"{model.num_parameters():,}",
                _layer_states(model, task.seq_len),
                f"{state.mathematical:,}",
                f"{state.bytes(2):,}",
                _ratio(model.flops_per_token(task.seq_len)),
                _ratio(model.flops_per_token(task.seq_len, causal=False)),
                *_planned(arm, experiment.snapshots),
            )
        table.add_section()
    if any(arm.training.schedule == "branched" for arm in experiment.arms):
        table.caption = (
            "steps: of the whole budget, + those of the decays of earlier branches, which it does not count."
        )
    return table


def matches(experiment: Experiment) -> list[str]:
    """A sentence for each quantity that an arm was to match: what it has, and by how much that misses."""
    return [f"{arm.name}: {match.sentence(arm.model)}" for arm in experiment.arms for match in arm.matches]


def starts(experiment: Experiment) -> list[str]:
    """A sentence for each arm that starts on short pieces: how many of its steps, and what of its budget they take."""
    return [
        f"{arm.name}: the first {arm.start_steps:,} steps read pieces of {arm.training.start_context:,} tokens, "
        f"{arm.start_tokens_per_step:,} tokens a step, for "
        f"{arm.flops_after(arm.start_steps) / arm.schedule().flops:.1%} of the FLOPs"
        for arm in experiment.arms
        if arm.training.start_context is not None
    ]


def states_needed(experiment: Experiment) -> list[str]:
    """A sentence for each task that says how many bits of state its optimum takes."""
    return [
        f"{task.name}: the best possible loss takes {task.state_bits:,.0f} bits of state at context {task.seq_len:,}"
        for task in experiment.tasks()
        if task.state_bits is not None
    ]


def results_table(runs: Sequence[Run]) -> Table:
    """What each arm is, spent and reached; losses by scored token, with 95 % intervals over documents."""
    table = new_table(
        *_COST_COLUMNS,
        "tokens",
        "FLOPs",
        "seconds",
        f"best-context loss\n({loss_units(runs)})",
        "at\npositions",
        "accuracy",
    )
    tasks = group_runs(runs)
    titles = panel_titles(tasks)
    named = Counter(group.arm.name for groups in tasks.values() for group in groups)
    for task, groups in tasks.items():
        here = Counter(group.arm.name for group in groups)
        for group in groups:
            name = group.arm.name
            if named[name] > 1:
                name += f" ({titles[task] if here[name] == 1 else group.folder})"
            table.add_row(name, *_result(task, group))
        table.add_section()
    return table


def loss_units(runs: Sequence[Run]) -> str:
    """The units of the tasks' losses, such as ``"nats"``."""
    return ", ".join(dict.fromkeys(task.loss_unit for task in group_runs(runs)))


def waiting(runs: Sequence[Run]) -> list[str]:
    """A sentence: the largest share of a run's training time that went by in waiting for batches, and whose it is."""
    shares = [
        (run.status["seconds_waited"] / run.status["seconds_spent"], run)
        for run in runs
        if run.status.get("seconds_waited") is not None
    ]
    if not shares:
        return []
    share, run = max(shares, key=lambda item: item[0])
    return [f"Waiting for data took at most {share:.1%} of a run's training time ({run.name}, seed {run.seed})."]


def sharing(runs: Sequence[Run]) -> list[str]:
    """A sentence, if runs shared their device: their seconds are not those that they would take alone."""
    most = max(run.runs_per_device for run in runs)
    return [f"Up to {most} runs shared a device: seconds of arms are not comparable."] if most > 1 else []


def in_context_learning(runs: Sequence[Run]) -> list[str]:
    """A sentence a text task: what context is worth to the arm that uses it best, and whether that decides anything.

    A task on which no arm gains :data:`~icl_eval.gates.LONG_GAIN` nats, with an interval clear of zero, from its last
    octaves of context tells long memories from short ones by noise alone.
    """
    sentences = []
    tasks = group_runs(runs)
    titles = panel_titles(tasks)
    for task, groups in tasks.items():
        if isinstance(task, GeneratedTask) or task.optimum(np.array([1])) is not None:
            continue
        early = max(task.seq_len // 8, 1)
        gains = [(group.label, context_gain(group.positions, early)) for group in groups if group.positions]
        for label, gain in sorted(gains, key=lambda item: -item[1].value)[:1]:
            valid = gain.value >= LONG_GAIN and gain.low > 0
            verdict = (
                "context is worth something here" if valid else "at this budget it decides nothing about long memory"
            )
            sentences.append(
                f"{titles[task]}: from position {early:,} to its end the loss falls by {gain.value:.3f} "
                f"[{gain.low:.3f}, {gain.high:.3f}] nats for {label}, the most of all arms: {verdict}."
            )
    return sentences


def bits_per_byte(runs: Sequence[Run]) -> list[str]:
    """Lines for each text task: the bits per byte of every arm, on all held-out documents and on each group of them.

    Unlike losses per token, they can be compared between tokenisers.
    """
    lines = []
    tasks = group_runs(runs)
    titles = panel_titles(tasks)
    for task, groups in tasks.items():
        measured = [g for g in groups if g.positions and all(p.document_bytes is not None for p in g.positions)]
        if not measured:
            continue
        pooled = [f"{group.label} {_interval(overall(group.positions, 'bits_per_byte'))}" for group in measured]
        lines.append(f"{titles[task]}, bits per byte: {', '.join(pooled)}.")
        for name, documents in measured[0].runs[0].data.get("heldout_groups", {}).items():
            parts = [(group.label, [p.of(np.array(documents)) for p in group.positions]) for group in measured]
            number = len(parts[0][1][0].documents)
            if number:
                values = (f"{label} {overall(part, 'bits_per_byte').value:.3f}" for label, part in parts)
                lines.append(f"  {name} ({number} {'document' if number == 1 else 'documents'}): {', '.join(values)}")
    return lines


def wsfr_table() -> Table:
    """Weight:state FLOP ratios of a 124 M GPT-2 (paper section 3, Table 2), in two counts, beside the paper's."""
    table = new_table("attention", "count", *(f"{context:,}" for context in WSFR_CONTEXTS))
    for name, mixer in WSFR_MIXERS.items():
        for count, causal in (("full squares", False), ("causal", True)):
            table.add_row(name, count, *(_ratio(wsfr(mixer, c, causal=causal)) for c in WSFR_CONTEXTS))
        table.add_row(name, "paper, rounded", *(_ratio(Flops(ratio, 1.0), digits=0) for ratio in PAPER_WSFR[name]))
        table.add_section()
    table.caption = (
        "Forward FLOPs, 2 per multiply-add, 124 M weights with the head. Full squares is the paper's count: no causal "
        "halving. The paper calls 0.8:1 at context 8,192 'about 1:1' and counts on from there in powers of two. Linear "
        "attention is counted in its chunked form, chunks of 128 tokens; in its recurrent form it comes to "
        + _ratio(recurrent_linear_flops())
        + "."
    )
    return table


def state_table(head_dim: int = 64) -> Table:
    """Rows D of a power-attention state by degree (paper section 2, Table 3): all monomials, and the distinct ones."""
    table = new_table("degree", "tpow D", "spow D", "saving", "paper: tpow D", "paper: spow D")
    for degree, published in PAPER_STATE.items():
        full, distinct = state_rows(degree, head_dim)
        in_paper = (f"{d:,}" for d in published) if head_dim == 64 else ("", "")
        table.add_row(str(degree), f"{full:,}", f"{distinct:,}", f"{1 - distinct / full:.1%}", *in_paper)
    table.caption = (
        f"Head size {head_dim}. A layer's state is heads * D * value size, and heads * D more for the normaliser."
    )
    return table


def new_table(*columns: str) -> Table:
    """An empty table in the house's style: the first column to the left, the others to the right."""
    table = Table(
        box=None, header_style="bold", pad_edge=False, collapse_padding=True, caption_justify="left", caption_style=""
    )
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def bin_label(start: int, end: int) -> str:
    """The positions of a bin: one alone, or the first and the last."""
    return f"{start:,}" if start == end else f"{start:,}-{end:,}"


def _layer_states(model: ModelConfig, context: int) -> str:
    """Elements of state of a layer; of a hybrid's, those of each kind of layer."""
    return "+".join(f"{size.mathematical:,}" for size in dict.fromkeys(model.layer_states(context)))


def _ratio(flops: Flops, digits: int = 1) -> str:
    ratio = flops.weight_state_ratio
    return f"{ratio:.{digits}f}:1" if ratio >= 1 else f"1:{1 / ratio:.{digits}f}"


def _planned(arm: Arm, snapshots: int) -> list[str]:
    if arm.budget.seconds is not None:
        return ["-", "-", "-", f"{arm.budget.seconds:g} s"]
    schedule = arm.schedule()
    branches = make_plan(arm, schedule.steps, snapshots).steps_spent - schedule.steps
    steps = f"{schedule.steps:,}" + (f" + {branches:,}" if branches else "")
    return [steps, _tokens(schedule.tokens), f"{schedule.flops:.3g}", f"{schedule.mismatch:+z.2%}"]


def _result(task: Task, group: Group) -> list[str]:
    model, runs = group.arm.model, group.runs
    assert isinstance(model, ModelConfig)
    costs = runs[0].config["costs"]
    state = costs["state_elements"]["mathematical"]
    schedule = runs[0].config["schedule"]
    seconds = np.mean([run.status["seconds"] for run in runs])
    row = [
        f"{costs['parameters']:,}",
        _layer_states(model, costs["context"]),
        f"{state:,}",
        _ratio(Flops(**costs["forward_flops_per_token"])),
        _tokens(schedule["tokens"]),
        f"{schedule['flops']:.3g}",
        f"{seconds:.0f}" if seconds >= 10 else f"{seconds:.1f}",
    ]
    diverged = [run for run in runs if run.diverged]
    if diverged:
        steps = ", ".join(f"seed {run.seed} at step {run.status['step']}" for run in diverged)
        return [*row, f"NaN ({steps})", "-", "-"]
    best = best_context_loss(group.positions)
    accuracy = _interval(overall(group.positions, "accuracy")) if task.loss == "cross_entropy" else "-"
    return [*row, _interval(best.estimate), bin_label(best.start, best.end), accuracy]


def _interval(estimate: Estimate) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*estimate)


def _tokens(tokens: int) -> str:
    if tokens < 1e5:
        return f"{tokens / 1e3:.1f} k"
    return f"{tokens / 1e6:.2f} M"
