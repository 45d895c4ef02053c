"""In-context-learning tasks. ``TASKS`` maps the names of the command line to config classes."""

from icl_eval.tasks.base import Batch, Source, Split, Task, TextSource
from icl_eval.tasks.markov import Markov
from icl_eval.tasks.mqar import MQAR
from icl_eval.tasks.text.tasks import Files, SourceCode, TextTask

TASKS: dict[str, type[Task]] = {task.name: task for task in (MQAR, Markov, SourceCode, Files)}

__all__ = [
    "MQAR",
    "TASKS",
    "Batch",
    "Files",
    "Markov",
    "Source",
    "SourceCode",
    "Split",
    "Task",
    "TextSource",
    "TextTask",
]
