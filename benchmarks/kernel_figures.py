"""Draws the kernels' benchmark from what it wrote: tokens/s against context, and time by operation and chunk size.

    python benchmarks/kernel_figures.py results/kernels

``power_attention.py`` calls it at its end.
"""

import argparse
import json
from pathlib import Path

import matplotlib as mpl
import pandas as pd

mpl.use("Agg")
import matplotlib.pyplot as plt

HEAD_DIMS = (32, 64)
COLOURS = {
    "softmax cuDNN": "#0072B2",
    "softmax flash": "#56B4E9",
    "power p=2": "#D55E00",
    "power p=2, attention": "#E69F00",
    "retention": "#009E73",
}
OPERATION_COLOURS = ("#009E73", "#CC79A7", "#D55E00", "#999999")


def draw(folder: Path) -> None:
    """Write ``throughput.png`` and ``operations.png`` beside ``power_attention.csv`` and ``power_attention.json``."""
    plot_throughput(pd.read_csv(folder / "power_attention.csv"), folder / "throughput.png")
    operations = json.loads((folder / "power_attention.json").read_text())["forward_by_operation"]
    plot_operations(pd.DataFrame(operations), folder / "operations.png")


def plot_throughput(rows: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    chosen = rows[(rows.batch == 1) & (rows["mode"] == "forward + backward")].dropna(subset=["tokens_per_s"])
    for axis, head_dim in zip(axes, HEAD_DIMS, strict=True):
        for name, points in chosen[chosen.head_dim == head_dim].groupby("provider", sort=False):
            points = points.sort_values("tokens")
            axis.plot(points.tokens, points.tokens_per_s, marker="o", label=name, color=COLOURS.get(str(name)))
        axis.set(yscale="log", xlabel="context (tokens)", title=f"head_dim {head_dim}")
        axis.set_xscale("log", base=2)
        axis.grid(alpha=0.3, which="both")
    axes[0].set_ylabel("forward + backward (tokens/s)")
    axes[0].legend()
    figure.savefig(path, dpi=150)


def plot_operations(rows: pd.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, head_dim in zip(axes, HEAD_DIMS, strict=True):
        table = rows[rows.head_dim == head_dim].pivot(index="chunk", columns="operation", values="ms")
        base = 0.0
        for operation, colour in zip(rows.operation.unique(), OPERATION_COLOURS, strict=True):
            axis.bar(table.index.astype(str), table[operation], bottom=base, label=operation, color=colour)
            base = base + table[operation]
        axis.set(xlabel="chunk size (tokens)", title=f"head_dim {head_dim}, 65,536 tokens", ylabel="forward (ms)")
    axes[0].legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="folder of power_attention.csv and power_attention.json")
    draw(parser.parse_args().results)
