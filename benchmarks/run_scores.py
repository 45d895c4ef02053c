"""Scores of finished runs, seed by seed, as one small JSON file to be kept with the figures.

    python benchmarks/run_scores.py RUNS --out results/state_frontier/scores.json

For every arm: its state, what it spent, accuracy and loss (nats per scored token) of each seed, every held-out
document counted once, and the loss with its 95 % interval over documents and seeds. Runs that diverged are counted.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from icl_eval import load_run
from icl_eval.run_folder import Run
from icl_eval.statistics import overall


def scores(runs: list[Run]) -> dict[str, Any]:
    """One arm's row."""
    positions = [run.positions for run in runs if run.positions is not None and not run.diverged]
    config = runs[0].config
    return {
        "arm": runs[0].name,
        "seeds": len(positions),
        "diverged": sum(run.diverged for run in runs),
        "state_elements": config["costs"]["state_elements"],
        "steps": config["schedule"]["steps"],
        "flops": config["schedule"]["flops"],
        "accuracy_by_seed": [round(float(overall([p], "accuracy").value), 4) for p in positions],
        "nll_by_seed": [round(float(overall([p]).value), 4) for p in positions],
        "nll": [round(float(x), 4) for x in overall(positions)] if positions else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    arguments = parser.parse_args()
    arms: dict[str, list[Run]] = {}
    for done in sorted(arguments.runs.rglob("DONE")):
        run = load_run(done.parent)
        arms.setdefault(run.name, []).append(run)
    arguments.out.write_text(json.dumps([scores(runs) for runs in arms.values()], indent=1) + "\n")


if __name__ == "__main__":
    main()
