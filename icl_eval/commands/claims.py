"""``icl-eval claims``: the tests as stated before the runs, or the verdicts of runs."""

from pathlib import Path
from typing import Annotated

import typer

from icl_eval.claims import CLAIMS, ONE_SEED_ALLOWANCE
from icl_eval.gates import GATES
from icl_eval.kernel_times import find_kernel_times
from icl_eval.run_folder import RunFolderError, load_runs
from icl_eval.statistics import CONFIDENCE, RESAMPLES, SMALLEST_SHARE
from icl_eval.verdicts import verdicts

app = typer.Typer(add_completion=False)


@app.command()
def claims(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN...]", help="Run folders, or folders of runs.")
    ] = None,
) -> None:
    """Print the test of every claim of the paper, in Markdown; with RUNs, their verdicts."""
    if not runs:
        typer.echo(claims_markdown(), nl=False)
        return
    kernels = find_kernel_times(runs)
    trained = [folder for folder in runs if kernels is None or any(folder.rglob("DONE"))]
    found = load_runs(trained) if trained else []
    for run in found:
        try:
            _ = run.positions
        except RunFolderError as error:
            typer.echo(f"warning: {error}; claims that need it are inconclusive", err=True)
    for verdict in verdicts(found, kernels):
        study = verdict.study
        where = f" ({study.name}, {study.domain}, seeds {', '.join(map(str, study.paired_seeds))})" if study else ""
        typer.echo(f"{verdict.claim.name:5} {verdict.outcome}{where}: {verdict.reason}")
        for contrast in verdict.contrasts if study else ():
            value, low, high = contrast.estimate
            typer.echo(f"      {contrast.name}: {value:.4f} [{low:.4f}, {high:.4f}], margin {contrast.margin:g}")


def claims_markdown() -> str:
    """``docs/claims.md``."""
    parts = [
        "# Claims and their tests\n",
        "Written by `icl-eval claims` from `icl_eval/claims.py`, before the runs. A verdict is read from run "
        "folders alone. Two things were changed after runs that they judge. After the central pair had first run: "
        "best-context losses were those of documents left out one at a time, and are now those of halves, which is as "
        "fair and less noisy; verdicts were the same by both. After a lone seed on books: what such a seed's intervals "
        "are widened by went from 0.01 to 0.03 nats, which makes it harder for any verdict. The central pair was then "
        "tuned and run again.\n",
        "A claim is a list of contrasts: numbers that are above a margin if it is true.\n",
        f"- **holds**: every contrast's {CONFIDENCE:.0%} interval is clear of its margin, and every seed lies on "
        "the same "
        "side. To say that all hold at once needs no correction for their number.\n"
        "- **fails**: some contrast lies below its margin, with an interval corrected for the number of contrasts "
        "(Bonferroni).\n"
        "- **inconclusive**: neither, or a gate is shut, or an arm, seed or measurement is missing or NaN.\n"
        "- **not run**: there are no runs.\n",
        f"Intervals: {RESAMPLES:,} paired bootstrap resamples of held-out documents, seeds nested as normal deviates "
        "(three have too few resamples), widened by Student's quantile and √(n / (n - 1)) for few documents and few "
        "seeds. Arms are compared on the documents that all of "
        "them were "
        "measured on, and every document counts once, however many windows of it were read: windows of one book are "
        "not independent. The best-context loss is the lowest among bins of half an octave that hold at least "
        f"{SMALLEST_SHARE:.0%} of the fullest bin's text, about the last five octaves of a context: shorter bins hold "
        "too few tokens to tell. With one seed the spread between trainings is unknown: "
        f"{ONE_SEED_ALLOWANCE} nats are added to both "
        "sides of every interval. Losses are in nats per byte. An octave that ends at e holds the positions e/2 + 1 "
        "to e; in "
        "contexts too short for a position named below, an eighth of the context takes its place. FLOPs are causal, "
        "on the mathematical state and without recomputation; the paper's count, of full squares, stands beside "
        "them.\n",
        "## Gates\nOf every claim about trained models; one that is shut makes the verdict inconclusive.\n",
        *(f"- **{name}**: {text}." for name, text in GATES.items()),
    ]
    for claim in CLAIMS:
        rows = {
            "the paper": claim.statement,
            "preset": f"`{claim.preset}`",
            "needs": claim.arms,
            "quantity": claim.quantity,
            "holds if": claim.test,
            "refuted by": claim.refuted,
            "own gates": claim.gates,
        }
        parts.append(f"\n## {claim.name} ({claim.figure})\n| | |\n|---|---|")
        parts += [f"| {name} | {text} |" for name, text in rows.items() if text]
    return "\n".join(parts) + "\n"
