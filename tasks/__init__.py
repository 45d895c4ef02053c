"""In-context-learning tasks. ``TASKS`` maps the names of the command line to config classes."""

from icl_eval.tasks.base import Batch, GeneratedTask, Source, Split, Task
from icl_eval.tasks.markov import Markov
from icl_eval.tasks.mqar import MQAR
from icl_eval.tasks.needle import Needle
from icl_eval.tasks.phonebook import Phonebook
from icl_eval.tasks.text.source_code import SourceCode
from icl_eval.tasks.variable_tracking import VariableTracking

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        MQAR,
        Phonebook,
        Needle,
        VariableTracking,
        Markov,
        SourceCode,
    )
}

__all__ = [
    "MQAR",
    "TASKS",
    "Batch",
    "GeneratedTask",
    "Markov",
    "Needle",
    "Phonebook",
    "Source",
    "SourceCode",
    "Split",
    "Task",
    "VariableTracking",
]
