"""A report of runs: one HTML file that needs nothing else, and the same in Markdown beside its figures."""

import base64
import shlex
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from icl_eval.claims import CLAIMS
from icl_eval.drawing import save_figure
from icl_eval.evidence import ArmRuns, Evidence, MissingEvidenceError
from icl_eval.experiment import Arm
from icl_eval.gates import DECIDING_SCALES
from icl_eval.kernel_times import KernelTimes
from icl_eval.measured_table import LEGEND, measured_rows
from icl_eval.minutes import total_minutes
from icl_eval.paper_plots import CAPTIONS, plot_study
from icl_eval.plots import plot_loss_by_position
from icl_eval.presets import load_preset
from icl_eval.run_folder import Run, RunFolderError, write_atomically
from icl_eval.statistics import Estimate, estimate
from icl_eval.studies import Study, studies
from icl_eval.verdicts import Verdict, verdicts

KERNEL_FIGURES = {
    "throughput.png": "Tokens per second against context, forward and backward, one sequence.",
    "operations.png": "Forward time by operation against chunk size.",
}


class Picture(NamedTuple):
    """A figure: its file's place from the report, its bytes in base64, and its caption."""

    path: str
    data: str
    caption: str


class Section(NamedTuple):
    """A part of the report: one experiment, or the kernel benchmark.

    Attributes:
        title: its heading.
        lines: facts, a sentence or a "name: value" each.
        verdicts: of the claims that it decides.
        pictures: its figures.
        header, rows: of the table of arms.
        again: what it takes to run it again beside the package.
        rerun: the command.
    """

    title: str
    lines: list[str]
    verdicts: list[Verdict]
    pictures: list[Picture]
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    again: str
    rerun: str


def write_report(runs: Sequence[Run], kernels: KernelTimes | None, out: Path) -> tuple[Path, Path]:
    """Write ``report.html``, ``report.md`` and ``figures/`` into a folder; returns the first two.

    Raises:
        RunFolderError: the folder cannot be written.
    """
    figures = out / "figures"
    try:
        figures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"cannot write {figures}: {error.strerror or error}") from error
    trained = [run for run in runs if isinstance(run.arm, Arm)]
    found = verdicts(trained, kernels)
    sections = [_section(study, [v for v in found if v.study == study], figures) for study in studies(trained)]
    sections += _measured_sections([run for run in runs if not isinstance(run.arm, Arm)], figures)
    if kernels:
        sections.append(_kernel_section(kernels, [v for v in found if v.claim.time], figures))
    content = {
        "verdicts": [_row(verdict) for verdict in found],
        "counts": {o: sum(v.outcome == o for v in found) for o in ("holds", "fails", "inconclusive", "not run")},
        "central": [v for v in found if v.claim.name in ("C12", "C12s", "C13")],
        "sections": sections,
        "claims": CLAIMS,
        "number": number,
        "interval": interval,
    }
    written = []
    for name, escape in (("report.html", True), ("report.md", False)):
        environment = Environment(autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        template = (files("icl_eval") / "templates" / f"{name}.jinja").read_text()
        write_atomically(out / name, environment.from_string(template).render(content))
        written.append(out / name)
    return written[0], written[1]


def _row(verdict: Verdict) -> dict[str, str]:
    """A line of the verdict table."""
    weakest, study = verdict.weakest, verdict.study
    effect = f"{weakest.name}: {interval(weakest.estimate)}; margin {weakest.margin:g}" if weakest else ""
    return {
        "claim": verdict.claim.name,
        "figure": verdict.claim.figure,
        "statement": verdict.claim.statement,
        "outcome": verdict.outcome,
        "reason": f"{verdict.reason}{_needed(verdict)}",
        "effect": effect,
        "unit": verdict.unit,
        "seeds": str(verdict.seeds) if study else "",
        "scale": study.scale if study else "",
        "domain": study.domain if study else "",
        "flops": _flops(study.arms) if study else "",
    }


def _needed(verdict: Verdict) -> str:
    if verdict.outcome != "not run" or not verdict.claim.judge:
        return ""
    minutes = total_minutes(load_preset(verdict.claim.preset, "h200"))
    return f"; at scale h200 it needs about {minutes:.0f} GPU minutes a seed"


def _flops(arms: Sequence[ArmRuns]) -> str:
    """FLOPs of the arms' training, causal, and in the paper's count in brackets; a range where they differ."""
    causal = [arm.runs[0].config["schedule"]["flops"] for arm in arms]
    paper = [arm.paper_count for arm in arms]
    return " ".join(form.format(_range(values)) for form, values in (("{}", causal), ("({})", paper)))


def _range(values: Sequence[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _section(study: Study, decided: list[Verdict], figures: Path) -> Section:
    lines = [study.described.get("question", ""), f"Documents: {study.domain}{_documents(study.runs)}."]
    if study.scale not in DECIDING_SCALES:
        lines.append(f"This is {study.scale or 'no'} scale: it shows that the preset runs and decides nothing.")
    if study.missing:
        lines.append(f"Unfinished: {', '.join(study.missing)}.")
    packages = {f"{name} {version}" for run in study.runs for name, version in run.env.get("packages", {}).items()}
    devices = sorted({f"{run.env.get('device')} ({run.config.get('precision')})" for run in study.runs})
    lines.append(f"Environment: {', '.join(devices)}; {', '.join(sorted(packages))}; commit {_commits(study)}.")
    header = (
        "arm", "parameters", "state", "weight:state", "context", "tokens/update", "learning rate", "updates", "tokens",
        "FLOPs", "paper's count", "seconds", "best-context loss",
    )  # fmt: skip
    if study.paired_seeds != study.seeds:
        shown = ", ".join(map(str, study.paired_seeds)) or "none"
        lines.append(f"Contrasts, figures and the table are over the seeds that all arms have: {shown}.")
    rows = [_arm_row(study, arm) for arm in (study.paired if study.paired_seeds else study.arms)]
    pictures = [_picture(file, CAPTIONS[name], figures) for name, file in plot_study(study, figures).items()]
    title = f"{study.name}: {study.domain}" if study.domain else study.name
    return Section(title, [line for line in lines if line], decided, pictures, header, rows, *_rerun(study))


def _documents(runs: Sequence[Run]) -> str:
    """How many there are to train on and held out, which depends on the context: shorter ones are left out."""
    counts = {
        run.arm.task.seq_len: f"{splits['train']['documents']:,} to train on and {splits['heldout']['documents']:,} "
        f"held out ({splits['heldout']['tokens']:,} tokens)"
        for run in runs
        if (splits := run.data.get("splits", {})).keys() >= {"train", "heldout"}
    }
    where = (f"{count} at context {context:,}" for context, count in sorted(counts.items()))
    return f", {'; '.join(where)}" if counts else ""


def _commits(study: Study) -> str:
    """Of all runs, in seven digits; ``+`` stands for changes that were not committed."""
    commits = {str(run.env.get("commit")) for run in study.runs}
    return " and ".join(sorted(f"{commit[:7]}{'+' * commit.endswith('+')}" for commit in commits))


def _arm_row(study: Study, arm: ArmRuns) -> tuple[str, ...]:
    run, training = arm.runs[0], arm.arm.training
    schedule = run.config["schedule"]
    try:
        evidence = Evidence(tuple(a for a in study.paired if a.name == arm.name))
        loss = interval(estimate(evidence.best(evidence.arms[0])))
    except (MissingEvidenceError, IndexError) as error:
        loss = str(error)
    ratio = arm.weight_state_ratio
    seconds = [r.status["seconds"] for r in arm.runs]
    return (
        arm.name,
        f"{arm.parameters:,}",
        f"{arm.state:,}",
        f"{ratio:.1f}:1" if ratio >= 1 else f"1:{1 / ratio:.1f}",
        f"{arm.context:,}",
        f"{arm.arm.tokens_per_step:,}",
        f"{training.learning_rate:g}",
        f"{schedule['steps']:,}",
        number(schedule["tokens"]),
        f"{schedule['flops']:.3g}",
        f"{arm.paper_count:.3g}",
        f"{sum(seconds) / len(seconds):.0f}",
        loss,
    )


def _rerun(study: Study) -> tuple[str, str]:
    """What the command below needs beside the package, and the command."""
    command = ["icl-eval", "run", study.described.get("preset") or study.preset]
    command += ["--scale", study.scale] if study.scale else []
    command += ["--seeds", ",".join(map(str, study.seeds))]
    config = study.runs[0].config
    path = config["arm"]["task"].get("path")
    command += ["--text", Path(path).name] if path else []
    command += ["--ledger", "ledger.json"] if config.get("tuning") else []
    needed = [f"commit {_commits(study)}"]
    needed += [f"the documents in {Path(path).name}"] if path else []
    needed += ["what icl-eval tune found in ledger.json"] if config.get("tuning") else []
    return f"Again, with {', '.join(needed)}", shlex.join(command)


def _measured_sections(runs: Sequence[Run], figures: Path) -> list[Section]:
    """Models measured on documents without being trained for it: a section an axis, the figure in the first."""
    if not runs:
        return []
    file = figures / "measured-loss_by_position.png"
    save_figure(plot_loss_by_position(runs), file)
    pictures = [_picture(file, "Loss by position on the same documents, with 95 % bands over documents.", figures)]
    commands = "; ".join(dict.fromkeys(run.config["command"] for run in runs))
    sections = []
    for title, header, rows in measured_rows(runs):
        names = tuple(name.replace("\n", " ") for name in header)
        cells = [tuple(row) for row in rows]
        sections.append(Section(f"Measured: {title}", [LEGEND], [], pictures, names, cells, "Again", commands))
        pictures = []
    return sections


def _kernel_section(kernels: KernelTimes, decided: list[Verdict], figures: Path) -> Section:
    environment = kernels.environment
    pictures = []
    for name, caption in KERNEL_FIGURES.items():
        if (kernels.folder / name).is_file():
            copied = figures / f"kernels-{name}"
            shutil.copyfile(kernels.folder / name, copied)
            pictures.append(_picture(copied, caption, figures))
    facts = ", ".join(f"{name} {value}" for name, value in environment.items() if name != "command")
    header = ("softmax attention over p=2", "head 64", "head 32")
    modes = ("forward", "forward + backward")
    rows = [(mode, *(interval(kernels.speedup(65_536, d, mode)) for d in (64, 32))) for mode in modes]
    lines = ["How much faster than softmax attention are the kernels at 65,536 tokens?", f"Environment: {facts}."]
    return Section("fig6_kernels", lines, decided, pictures, header, rows, "Again", environment.get("command", ""))


def _picture(file: Path, caption: str, figures: Path) -> Picture:
    data = base64.b64encode(file.read_bytes()).decode()
    return Picture(f"{figures.name}/{file.name}", data, caption)


def number(value: float) -> str:
    """A count with its magnitude: 1.23 M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def interval(value: Estimate) -> str:
    """A value and its interval; the value alone where it is exact."""
    if value.low == value.value == value.high:
        return f"{value.value:.3f}"
    return f"{value.value:.3f} [{value.low:.3f}, {value.high:.3f}]"
