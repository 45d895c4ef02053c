"""The kernel benchmark's files (``benchmarks/power_attention.py``) as evidence."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from icl_eval.evidence import MissingEvidenceError
from icl_eval.run_folder import RunFolderError
from icl_eval.statistics import Estimate

FILES = ("power_attention.csv", "power_attention.json")
POWER = "power p=2"


@dataclass(frozen=True, eq=False)
class KernelTimes:
    """Times of kernels on one GPU.

    Attributes:
        folder: where they were read.
        rows: a row a measurement: provider, mode, batch, tokens, head_dim, median_ms with its 20 % and 80 % quantiles
            low_ms and high_ms, tokens_per_s.
        environment: GPU, versions, commit and command.
        operations: forward milliseconds by head_dim, chunk and operation.
    """

    folder: Path
    rows: pd.DataFrame
    environment: dict[str, Any]
    operations: pd.DataFrame

    def times(self, provider: str, tokens: int, head_dim: int, mode: str) -> pd.Series:
        """The row of a measurement with one sequence.

        Raises:
            MissingEvidenceError: it was not measured.
        """
        rows = self.rows
        chosen = rows[
            (rows.provider == provider)
            & (rows.tokens == tokens)
            & (rows.head_dim == head_dim)
            & (rows["mode"] == mode)
            & (rows.batch == 1)
            & rows.median_ms.notna()
        ]
        if chosen.empty:
            raise MissingEvidenceError(f"{provider}, {tokens:,} tokens, head_dim {head_dim}, {mode}: not measured")
        return chosen.iloc[0]

    @property
    def softmax(self) -> str:
        """The fastest softmax attention measured at 65,536 tokens."""
        rows = self.rows[self.rows.provider.str.startswith("softmax") & (self.rows.tokens == 65_536)]
        if rows.empty:
            raise MissingEvidenceError("softmax attention at 65,536 tokens: not measured")
        return str(rows.sort_values("median_ms").provider.iloc[0])

    def speedup(self, tokens: int, head_dim: int, mode: str) -> Estimate:
        """Time of softmax over that of power; the interval is of the 20 % and 80 % quantiles of both."""
        power, softmax = (self.times(name, tokens, head_dim, mode) for name in (POWER, self.softmax))
        return Estimate(
            softmax.median_ms / power.median_ms, softmax.low_ms / power.high_ms, softmax.high_ms / power.low_ms
        )

    def speeds(self, provider: str, head_dim: int, mode: str, at_least: int) -> pd.Series:
        """Tokens per second by context, for contexts of at least so many tokens."""
        rows = self.rows
        chosen = rows[
            (rows.provider == provider)
            & (rows.head_dim == head_dim)
            & (rows["mode"] == mode)
            & (rows.batch == 1)
            & (rows.tokens >= at_least)
            & rows.median_ms.notna()
        ]
        if len(chosen) < 2:
            raise MissingEvidenceError(f"{provider}, head_dim {head_dim}: fewer than two contexts from {at_least:,}")
        return chosen.set_index("tokens").tokens_per_s.sort_index()

    def total_by_chunk(self, head_dim: int) -> pd.Series:
        """Forward milliseconds of all operations, by chunk size."""
        chosen = self.operations[self.operations.head_dim == head_dim]
        if chosen.empty:
            raise MissingEvidenceError(f"head_dim {head_dim}: no times by operation")
        return chosen.groupby("chunk").ms.sum().sort_index()


def find_kernel_times(folders: Sequence[Path]) -> KernelTimes | None:
    """The kernel benchmark at or below one of the folders, or ``None``.

    Raises:
        RunFolderError: its files are damaged.
    """
    for folder in folders:
        for file in sorted(Path(folder).rglob(FILES[0])):
            try:
                summary = json.loads((file.parent / FILES[1]).read_text())
                rows, operations = pd.read_csv(file), pd.DataFrame(summary["forward_by_operation"])
            except (OSError, ValueError, KeyError) as error:
                raise RunFolderError(f"cannot read the kernel benchmark in {file.parent}: {error}") from error
            return KernelTimes(file.parent, rows, summary["environment"], operations)
    return None
