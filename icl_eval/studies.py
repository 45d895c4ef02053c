"""Experiments as their folders tell of them: what was to be run, and the runs that have finished."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from icl_eval.evidence import ArmRuns
from icl_eval.run_folder import Run, RunFolder

SCALES = ("smoke", "h200", "paper")


@dataclass(frozen=True)
class Study:
    """One experiment's folder: what was to be run, and the runs that have finished.

    Attributes:
        root: its folder.
        described: its ``experiment.json``; empty where there is none.
        runs: finished ones.
    """

    root: Path
    described: dict[str, Any]
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        return self.described.get("name", "")

    @property
    def preset(self) -> str:
        """Name of the preset, without the scale."""
        return self.name.removesuffix(f"-{self.scale}")

    @property
    def scale(self) -> str:
        return next((scale for scale in SCALES if self.name.endswith(f"-{scale}")), "")

    @property
    def key(self) -> str:
        """Tells it from other experiments of the same name: the name of its folder."""
        return self.root.name

    @property
    def domain(self) -> str:
        """What the arms were trained on, for a table: the documents' name and the first digits of their hash."""
        task, sha256 = self.runs[0].config["arm"]["task"], self.runs[0].data.get("sha256")
        name = Path(task["path"]).name if task.get("path") else task["class"]
        return f"{name} {sha256[:8]}" if sha256 else name

    @property
    def arms(self) -> tuple[ArmRuns, ...]:
        listed = [arm["name"] for arm in self.described.get("arms", [])]
        names = listed or list(dict.fromkeys(run.name for run in self.runs))
        grouped = (
            ArmRuns(name, tuple(sorted((r for r in self.runs if r.name == name), key=lambda r: r.seed)))
            for name in names
        )
        return tuple(arm for arm in grouped if arm.runs)

    @property
    def paired(self) -> tuple[ArmRuns, ...]:
        """The arms with the seeds that all of them have."""
        common = self.paired_seeds
        return tuple(ArmRuns(arm.name, tuple(run for run in arm.runs if run.seed in common)) for arm in self.arms)

    @property
    def paired_seeds(self) -> tuple[int, ...]:
        """The seeds that all arms have, and that arms are compared on."""
        return tuple(sorted(set.intersection(*(set(arm.seeds) for arm in self.arms))))

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds that any arm has."""
        return tuple(sorted({run.seed for run in self.runs}))

    @property
    def missing(self) -> tuple[str, ...]:
        """Arms and seeds that the experiment lists, or that other arms have, and that have not finished."""
        return tuple(f"{name} seed {seed}" for name, seed in self._missing)

    @property
    def unfinished(self) -> tuple[str, ...]:
        """The missing ones that are not merely left out of :attr:`runs`."""
        folders = {f"{name} seed {seed}": self.root / name / f"seed{seed}" for name, seed in self._missing}
        return tuple(run for run, folder in folders.items() if not RunFolder(folder).done)

    @property
    def _missing(self) -> list[tuple[str, int]]:
        done = {(run.name, run.seed) for run in self.runs}
        seeds = sorted({*self.described.get("seeds", ()), *self.seeds})
        names = [arm["name"] for arm in self.described.get("arms", [])] or [arm.name for arm in self.arms]
        return [(name, seed) for name in names for seed in seeds if (name, seed) not in done]


def studies(runs: Sequence[Run]) -> list[Study]:
    """The experiments that the runs belong to, in order."""
    roots = dict.fromkeys(run.path.parents[1] for run in runs)
    found = []
    for root in roots:
        file = root / "experiment.json"
        described = json.loads(file.read_text()) if file.is_file() else {}
        found.append(Study(root, described, tuple(run for run in runs if run.path.parents[1] == root)))
    return found
