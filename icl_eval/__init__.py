"""icl-eval: train matched-compute sequence models and measure what their context is worth, position by position.

The public names load on first use, so that importing one room (``icl_eval.kernels``, say) does not import the others.
lm-eval learns the model ``icl-eval`` by name only: neither torch nor lm-eval's evaluator is imported before it is used.
"""

from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from icl_eval.budget import Budget as Budget
    from icl_eval.experiment import Arm as Arm
    from icl_eval.experiment import Experiment as Experiment
    from icl_eval.experiment import Training as Training
    from icl_eval.run_folder import load_run as load_run
    from icl_eval.run_folder import load_runs as load_runs
    from icl_eval.tuning import tune as tune

_HOME = {
    "Arm": "icl_eval.experiment",
    "Budget": "icl_eval.budget",
    "Experiment": "icl_eval.experiment",
    "Training": "icl_eval.experiment",
    "load_run": "icl_eval.run_folder",
    "load_runs": "icl_eval.run_folder",
    "tune": "icl_eval.tuning",
}
__all__ = ["Arm", "Budget", "Experiment", "Training", "load_run", "load_runs", "tune"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'icl_eval' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


with suppress(ModuleNotFoundError):
    import lm_eval.models  # noqa: F401 - registers lm-eval's own, which it does by itself only where there are none yet
    from lm_eval.api.registry import model_registry

    model_registry.register("icl-eval", target="icl_eval.lm_eval_adapter:RunFolderLM")
