"""Imports point one way: rooms know what they are made of, never who uses them."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from icl_eval.cli import COMMANDS

ROOT = Path(__file__).parents[1]
ROOMS = {"icl_eval.kernels": "kernels", "icl_eval.models": "models", "icl_eval.tasks": "tasks", "icl_eval": "icl_eval"}
LEAF = {"icl_eval.config"}
"""May be imported from every room; imports nothing but the standard library."""
ALLOWED = {
    "icl_eval.kernels": {"icl_eval.kernels"},
    "icl_eval.models": {"icl_eval.models", "icl_eval.kernels"},
    "icl_eval.tasks": {"icl_eval.tasks"},
}


def modules() -> dict[str, Path]:
    """Every module of the package, by its import name."""
    found = {}
    for package, folder in ROOMS.items():
        for file in (ROOT / folder).rglob("*.py"):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = file
    return found


def imports(file: Path) -> set[str]:
    """Modules imported when the file runs or when types are checked."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "icl_eval"}


def room(module: str) -> str:
    return next(package for package in ROOMS if module == package or module.startswith(package + "."))


@pytest.mark.parametrize("package", ALLOWED)
def test_rooms_import_only_what_lies_below(package: str) -> None:
    known = modules()
    for name, file in known.items():
        if room(name) == package:
            for target in imports(file) & known.keys() - LEAF - {"icl_eval"}:
                assert room(target) in ALLOWED[package], f"{name} imports {target}"


def test_there_are_no_circular_imports() -> None:
    known = modules()
    graph = {name: imports(file) & known.keys() - {name} for name, file in known.items() if name != "icl_eval"}
    for name in graph:
        parents = {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)}
        graph[name] -= parents | {"icl_eval"}
    list(TopologicalSorter(graph).static_order())


def test_the_harness_never_imports_presets() -> None:
    for name, file in modules().items():
        assert not any(target.startswith("icl_eval.experiments") for target in imports(file)), name


def test_kernels_load_without_the_other_rooms() -> None:
    code = "import sys, icl_eval.kernels; print(*sorted(m for m in sys.modules if m.startswith('icl_eval')))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert all(room(name) in ("icl_eval.kernels", "icl_eval") for name in loaded)
    assert "icl_eval.train" not in loaded


SLOW = {"datasets", "lm_eval.evaluator", "ray", "scipy.stats", "seaborn", "torch._dynamo", "transformers"}


@pytest.mark.parametrize(
    ("commands", "slow"),
    [((), SLOW | {"torch", "matplotlib"}), (("list",), SLOW | {"torch", "matplotlib"}), (COMMANDS, SLOW)],
    ids=["none", "list", "all"],
)
def test_commands_are_loaded_without_what_is_slow_to_load(commands: tuple[str, ...], slow: set[str]) -> None:
    modules = ["icl_eval.cli", *(f"icl_eval.commands.{name.replace('-', '_')}" for name in commands)]
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not slow & set(loaded)


def test_runs_are_understood_by_whoever_imports_what_loads_them() -> None:
    code = (
        "from icl_eval import load_runs; print(*sorted(run.arm.name for run in load_runs('results/fig4_icl_curves')))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert set(told.split()) == {"window", "linear"}
