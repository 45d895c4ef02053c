"""In-context-learning tasks. ``TASKS`` maps the names of the command line to config classes."""

from icl_eval.tasks.base import Batch, Source, Split, Task
from icl_eval.tasks.classification import Classification
from icl_eval.tasks.markov import Markov
from icl_eval.tasks.mqar import MQAR
from icl_eval.tasks.regbench import RegBench
from icl_eval.tasks.regression import Regression
from icl_eval.tasks.text.source_code import SourceCode

TASKS: dict[str, type[Task]] = {
    task.name: task for task in (MQAR, Markov, Regression, RegBench, Classification, SourceCode)
}

__all__ = [
    "MQAR",
    "TASKS",
    "Batch",
    "Classification",
    "Markov",
    "RegBench",
    "Regression",
    "Source",
    "SourceCode",
    "Split",
    "Task",
]
