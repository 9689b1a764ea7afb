"""How each kind of task is judged: one file a kind.

Adding a kind: a subclass of `Kind` in a file of its name, a line here, and a protocol that says how (protocols.py).
"""

from eosin.evaluation.kinds.classification import Classification
from eosin.evaluation.kinds.kind import Asked, Kind
from eosin.evaluation.kinds.regression import Regression
from eosin.evaluation.kinds.robustness import Robustness
from eosin.evaluation.kinds.segmentation import Segmentation
from eosin.evaluation.kinds.slide import Slide
from eosin.evaluation.tasks import Task

KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (Classification(), Slide(), Segmentation(), Regression(), Robustness())
}
"""By the name that a task has for its kind."""


def kind_of(task: Task) -> Kind:
    """How tasks like this one are judged."""
    return KINDS[task.kind]


__all__ = ["KINDS", "Asked", "Kind", "kind_of"]
