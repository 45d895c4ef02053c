"""Which of the user's source files an experiment's numbers depend on."""

import hashlib
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


def user_code(classes: Iterable[type]) -> dict[str, str]:
    """SHA-256 of every source file of the user's that classes are defined in, or whose names it uses, by module.

    Followed from module to module through what they import at their top. Ours, Python's and installed packages are left
    out: their versions are recorded.
    """
    pending, found = [sys.modules[cls.__module__] for cls in classes], dict[str, str]()
    while pending:
        module = pending.pop()
        file = getattr(module, "__file__", None)
        if module.__name__ in found or not file or not _is_users(module.__name__, Path(file)):
            continue
        found[module.__name__] = hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for value in vars(module).values():
            origin = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(origin, str) and origin in sys.modules:
                pending.append(sys.modules[origin])
    return dict(sorted(found.items()))


def _is_users(module: str, file: Path) -> bool:
    libraries = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    installed = any(file.resolve().is_relative_to(Path(library).resolve()) for library in libraries)
    return file.suffix == ".py" and not installed and module.split(".")[0] != "icl_eval"
