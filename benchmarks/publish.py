"""Copies finished runs, small enough to be committed: what verdicts, figures and reports read of them.

    python benchmarks/publish.py runs/fig9_long_context-h200-HASH --out results/fig9_long_context

Checkpoints stay behind, and so do the folders in which documents lay. Sums by single positions become float32 and their
squares NaN, which no figure or test reads; sums by document and bin stay as they are, so that verdicts, tables and
figures of the copy are those of the runs.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from icl_eval.run_folder import Run, load_runs, to_json, write_atomically

COPIED = ("env.json", "data.json", "tokenizer.json", "metrics.jsonl")
PLACES = ("path", "heldout_path", "tokenizer_path")


def publish(run: Run, folder: Path) -> None:
    """Write the copy of a run; ``DONE`` comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    copy_without_places(run.path / "config.json", folder / "config.json")
    for name in COPIED:
        if (run.path / name).is_file():
            shutil.copyfile(run.path / name, folder / name)
    if (positions := run.positions) is not None:
        small = replace(
            positions,
            nll_sum=positions.nll_sum.astype(np.float32),
            nll_square_sum=np.full_like(positions.nll_square_sum, np.nan),
            correct=positions.correct.astype(np.float32),
        )
        write_atomically(folder / "positions.npz", small.to_bytes())
    shutil.copyfile(run.path / "DONE", folder / "DONE")


def copy_without_places(file: Path, copy: Path) -> None:
    """Copy JSON; of the paths of documents, which decide nothing, only the last part is kept."""

    def shortened(fields: dict[str, Any]) -> dict[str, Any]:
        return {key: Path(value).name if value and key in PLACES else value for key, value in fields.items()}

    write_atomically(copy, to_json(json.loads(file.read_text(), object_hook=shortened), indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="folder of an experiment")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    for run in load_runs(arguments.runs):
        publish(run, arguments.out / run.path.parent.name / run.path.name)
    copy_without_places(arguments.runs / "experiment.json", arguments.out / "experiment.json")


if __name__ == "__main__":
    main()
