"""In-context-learning tasks. ``TASKS`` maps the names of the command line to config classes."""

from icl_eval.tasks.base import Batch, GeneratedTask, Source, Split, Task, TextSource
from icl_eval.tasks.classification import Classification
from icl_eval.tasks.copy import StringCopy
from icl_eval.tasks.induction import Induction
from icl_eval.tasks.markov import Markov
from icl_eval.tasks.mqar import MQAR
from icl_eval.tasks.needle import Needle
from icl_eval.tasks.noisy_recall import NoisyRecall
from icl_eval.tasks.phonebook import Phonebook
from icl_eval.tasks.regbench import RegBench
from icl_eval.tasks.regression import Regression
from icl_eval.tasks.selective_copy import SelectiveCopy
from icl_eval.tasks.text.longcrawl64 import LongCrawl64
from icl_eval.tasks.text.tasks import Files, Hub, SourceCode, TextTask
from icl_eval.tasks.variable_tracking import VariableTracking

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        MQAR,
        NoisyRecall,
        Induction,
        StringCopy,
        SelectiveCopy,
        Phonebook,
        Needle,
        VariableTracking,
        Markov,
        Regression,
        RegBench,
        Classification,
        SourceCode,
        Files,
        Hub,
        LongCrawl64,
    )
}

__all__ = [
    "MQAR",
    "TASKS",
    "Batch",
    "Classification",
    "Files",
    "GeneratedTask",
    "Hub",
    "Induction",
    "LongCrawl64",
    "Markov",
    "Needle",
    "NoisyRecall",
    "Phonebook",
    "RegBench",
    "Regression",
    "SelectiveCopy",
    "Source",
    "SourceCode",
    "Split",
    "StringCopy",
    "Task",
    "TextSource",
    "TextTask",
    "VariableTracking",
]
