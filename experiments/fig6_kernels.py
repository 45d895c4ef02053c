"""C8, C9: speed of the kernels against softmax attention, and the best chunk size (the paper's figure 6)."""

from icl_eval.experiment import Untrained


def experiment() -> Untrained:
    """Nothing to train: the kernel benchmark, on a GPU, is the evidence."""
    return Untrained(
        name="fig6_kernels",
        question="How much faster than softmax attention are the kernels, at which context, and with which chunks?",
        commands=("python benchmarks/power_attention.py --out results/kernels", "icl-eval claims results/kernels"),
    )
