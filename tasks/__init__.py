"""In-context-learning tasks. ``TASKS`` maps the names of the command line to config classes."""

from icl_eval.tasks.base import Batch, Source, Split, Task, TextSource
from icl_eval.tasks.markov import Markov
from icl_eval.tasks.mqar import MQAR
from icl_eval.tasks.text.longcrawl64 import LongCrawl64
from icl_eval.tasks.text.tasks import Files, Hub, SourceCode, TextTask

TASKS: dict[str, type[Task]] = {task.name: task for task in (MQAR, Markov, SourceCode, Files, Hub, LongCrawl64)}

__all__ = [
    "MQAR",
    "TASKS",
    "Batch",
    "Files",
    "Hub",
    "LongCrawl64",
    "Markov",
    "Source",
    "SourceCode",
    "Split",
    "Task",
    "TextSource",
    "TextTask",
]
