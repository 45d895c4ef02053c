"""Losses in octaves of the context, by arm and seed: at each end of a branch in the last, and what was gained there
since earlier ones; seconds of training and of an update; as Markdown.

    python benchmarks/run_octaves.py results/fig9_long_context
"""

import sys
from pathlib import Path

import numpy as np

from icl_eval import Arm
from icl_eval.positions import Positions
from icl_eval.run_folder import Run, load_runs
from icl_eval.statistics import resampled_bins

EARLIER = (64, 32, 8)
"""Octaves that end at these parts of the context, which gains are counted from."""


def octave(positions: Positions, end: int, snapshot: int) -> float:
    """Loss at positions ``end / 2 + 1`` to ``end`` (nats a token), every document counting once."""
    edges = positions.bin_edges
    inside = (edges[:-1] > end // 2) & (edges[1:] - 1 <= end)
    return float(resampled_bins([positions], inside[:, None].astype(float), snapshot=snapshot)[0, 0])


def update_ms(run: Run, first: int, last: int) -> float:
    """Median milliseconds of an update among those from ``first`` to ``last``."""
    rows = run.metrics[(run.metrics.step >= first) & (run.metrics.step <= last)]
    passed = rows.groupby(rows.branch.fillna(0.0))[["seconds", "step"]].diff()
    return float((passed.seconds / passed.step).median() * 1e3)


def row(run: Run) -> str:
    positions, arm = run.positions, run.arm
    assert positions is not None
    assert isinstance(arm, Arm), "measured runs have no training"
    context, start = arm.task.seq_len, arm.start_steps
    ends = [octave(positions, context, k) for k in range(len(positions.step))]
    gains = [octave(positions, context // part, -1) - ends[-1] for part in EARLIER]
    cells = [
        ", ".join(f"{x:.0f}" for x in positions.seconds),
        f"{update_ms(run, start, 10**9):.0f}",
        f"{update_ms(run, 10, start):.0f}" if start > 10 else "-",
        *(f"{x:.3f}" for x in (*ends, *gains)),
    ]
    return f"| {run.name} | {run.seed} | {' | '.join(cells)} |"


def main() -> None:
    runs = load_runs(Path(sys.argv[1]))
    context = runs[0].arm.task.seq_len
    shares = [f"at {share:.0%}" for share in np.round(runs[0].positions.flops / runs[0].positions.flops[-1], 2)]
    earlier = [f"gained since {context // part // 2 + 1:,} to {context // part:,}" for part in EARLIER]
    header = ["arm", "seed", "seconds at the ends", "update, ms", "at the start, ms", *shares, *earlier]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for run in runs:
        print(row(run))


if __name__ == "__main__":
    main()
