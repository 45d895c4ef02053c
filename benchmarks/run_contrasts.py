"""Best-context losses of an experiment's arms at the ends of branches, gains between octaves, and differences
of every two arms, with 95 % intervals, documents and seeds paired; as Markdown.

    python benchmarks/run_contrasts.py results/fig8_axes --gain 32 1024 --gain 1024 4096
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from icl_eval.evidence import ENDS, Evidence
from icl_eval.run_folder import load_runs
from icl_eval.statistics import estimate
from icl_eval.studies import studies


def rows(what: str, drawn: dict[str, np.ndarray]) -> list[str]:
    """A row an arm, and one for every two."""
    pairs = {f"{one} - {other}": drawn[one] - drawn[other] for one, other in combinations(drawn, 2)}
    found = {name: estimate(values) for name, values in (drawn | pairs).items()}
    return [f"| {name} | {what} | {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] |" for name, e in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of an experiment")
    parser.add_argument(
        "--gain",
        type=int,
        nargs=2,
        action="append",
        default=[],
        metavar=("EARLY", "LATE"),
        help="octaves by their last positions",
    )
    arguments = parser.parse_args()
    (study,) = studies(load_runs(arguments.runs))
    evidence = Evidence(study.paired)
    print("| arm | what | nats |\n|---|---|---|")
    for end in ENDS:
        losses = {arm.name: evidence.best(arm, end) for arm in evidence.arms}
        print(*rows(f"best-context loss at {end:g} of the budget", losses), sep="\n")
    for early, late in arguments.gain:
        for end in ENDS:
            reach = [arm for arm in evidence.arms if arm.context >= late]
            gains = {arm.name: evidence.gain(arm, early, end, late) for arm in reach}
            print(*rows(f"gain from {early:,} to {late:,} at {end:g} of the budget", gains), sep="\n")


if __name__ == "__main__":
    main()
