"""C4, C5: the paper's two tables of arithmetic."""

from icl_eval.experiment import Untrained


def experiment() -> Untrained:
    """Nothing to train: the accounting code computes both tables."""
    return Untrained(
        name="tables",
        question="Are the paper's weight:state ratios and state sizes what its definitions give?",
        commands=("icl-eval table wsfr", "icl-eval table state"),
    )
