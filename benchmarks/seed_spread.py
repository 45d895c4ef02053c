"""How far seeds differ in what claims are judged by: for each claim, the standard deviation between seeds, as the root
mean square over its contrasts; then over claims. A lone seed's interval is widened by twice that.

    python benchmarks/seed_spread.py results/fig1_state_helps results/fig2_balance results/fig3_window_vs_linear \\
        results/fig4_icl_curves results/fig7_balanced_icl results/fig8_axes results/fig9_long_context \\
        results/table4_equal_inference
"""

import sys
from pathlib import Path

import numpy as np

from icl_eval.run_folder import load_runs
from icl_eval.verdicts import verdicts


def main() -> None:
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    spreads = {}
    for verdict in verdicts(load_runs([Path(folder) for folder in sys.argv[1:]])):
        variances = [np.var(contrast.by_seed, ddof=1) for contrast in verdict.contrasts if len(contrast.by_seed) > 1]
        if variances:
            spreads[verdict.claim.name] = float(np.sqrt(np.mean(variances)))
            print(f"{verdict.claim.name}: {spreads[verdict.claim.name]:.4f} ({len(variances)} contrasts)")
    print(f"all: {np.sqrt(np.mean(np.square(list(spreads.values())))):.4f}")


if __name__ == "__main__":
    main()
