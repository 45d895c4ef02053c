"""Best-context losses of an experiment's arms at the ends of branches, gains between octaves, and differences
of every two arms, with 95 % intervals, documents and seeds paired, a lone seed's widened as verdicts do; as Markdown.

    python benchmarks/run_contrasts.py results/fig8_axes --gain 32 1024 --gain 1024 4096
    python benchmarks/run_contrasts.py results/fig9_long_context --ends softmax 0.5 power 1
"""

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np

from icl_eval.claims import ONE_SEED_ALLOWANCE
from icl_eval.evidence import ENDS, Evidence
from icl_eval.run_folder import load_runs
from icl_eval.statistics import by_seed, estimate
from icl_eval.studies import studies


def rows(what: str, drawn: dict[str, np.ndarray]) -> list[str]:
    """A row an arm, and one for every two."""
    pairs = {f"{one} - {other}": drawn[one] - drawn[other] for one, other in combinations(drawn, 2)}
    table = []
    for name, values in (drawn | pairs).items():
        value, low, high = estimate(values)
        allowance = ONE_SEED_ALLOWANCE if len(by_seed(values)) == 1 else 0
        table.append(f"| {name} | {what} | {value:.3f} [{low - allowance:.3f}, {high + allowance:.3f}] |")
    return table


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
    parser.add_argument(
        "--ends",
        nargs=4,
        action="append",
        default=[],
        metavar=("ARM", "END", "ARM", "END"),
        help="two arms, each at an end of its own",
    )
    arguments = parser.parse_args()
    (study,) = studies(load_runs(arguments.runs))
    evidence = Evidence(study.paired)
    print("| arm | what | nats |\n|---|---|---|")
    for end in ENDS:
        losses = {arm.name: evidence.best(arm, end) for arm in evidence.arms}
        print(*rows(f"best-context loss at {end:g} of the budget", losses), sep="\n")
    arms = {arm.name: arm for arm in evidence.arms}
    for one, end, other, other_end in arguments.ends:
        ends = {one: evidence.best(arms[one], float(end)), other: evidence.best(arms[other], float(other_end))}
        print(*rows(f"best-context loss at {end} and at {other_end} of the budget", ends), sep="\n")
    for early, late in arguments.gain:
        for end in ENDS:
            reach = [arm for arm in evidence.arms if arm.context >= late]
            gains = {arm.name: evidence.gain(arm, early, end, late) for arm in reach}
            print(*rows(f"gain from {early:,} to {late:,} at {end:g} of the budget", gains), sep="\n")


if __name__ == "__main__":
    main()
