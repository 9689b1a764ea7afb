"""Judge encoders: tasks, protocols, probes, statistics."""

from eosin.evaluation.evaluate import evaluate
from eosin.evaluation.protocols import PROTOCOLS, Protocol, find_protocols
from eosin.evaluation.results import read_results
from eosin.evaluation.tasks import Task, open_task

__all__ = ["PROTOCOLS", "Protocol", "Task", "evaluate", "find_protocols", "open_task", "read_results"]
