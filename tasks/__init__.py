"""In-context-learning tasks. ``TASKS`` maps the names of the command line to config classes."""

from icl_eval.tasks.base import Batch, Source, Split, Task, TextSource
from icl_eval.tasks.classification import Classification
from icl_eval.tasks.markov import Markov
from icl_eval.tasks.mqar import MQAR
from icl_eval.tasks.regbench import RegBench
from icl_eval.tasks.regression import Regression
from icl_eval.tasks.text.longcrawl64 import LongCrawl64
from icl_eval.tasks.text.tasks import Files, Hub, SourceCode, TextTask

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (MQAR, Markov, Regression, RegBench, Classification, SourceCode, Files, Hub, LongCrawl64)
}

__all__ = [
    "MQAR",
    "TASKS",
    "Batch",
    "Classification",
    "Files",
    "Hub",
    "LongCrawl64",
    "Markov",
    "RegBench",
    "Regression",
    "Source",
    "SourceCode",
    "Split",
    "Task",
    "TextSource",
    "TextTask",
]
