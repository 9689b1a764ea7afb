"""The loss of slide labels over one optimiser step: a sum over slides, so slides can be learned from one at a time.

Σ w_t · loss_t(slide) / Σ w_t, both sums over all labels that are present on any slide of the step, on any process. The
divisor is counted beforehand from the label table (`label_weight`); nothing has to be exchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from eosin.errors import RecipeError
from eosin.models.mil.head import Targets
from eosin.models.slide_task import SlideTask, checked_tasks
from eosin.objectives.multitask import ClassWeights, labelled, task_losses


@dataclass(frozen=True)
class SlideObjective:
    """Terms of the slide loss of one optimiser step.

    tasks: those of the pyramid. divisor: `label_weight` over all slides of the step. weights: of the tasks; 1/√outputs
    without (`task_weights`). scale: of the whole loss. class_weights: as `task_losses` takes them. Raises RecipeError
    for a divisor or weight that is not positive, and for survival without time cuts: Cox's likelihood compares slides
    with each other.
    """

    tasks: tuple[SlideTask, ...]
    divisor: float
    weights: Mapping[str, float] = field(default_factory=dict)
    scale: float = 1.0
    class_weights: ClassWeights | None = None

    @classmethod
    def of_step(
        cls,
        tasks: Sequence[SlideTask],
        targets: Iterable[Targets],
        weights: Mapping[str, float] | None = None,
        scale: float = 1.0,
        class_weights: ClassWeights | None = None,
    ) -> SlideObjective:
        """The loss of the step that learns from `targets`: those of all its slides, on all processes alike."""
        return cls(tuple(tasks), label_weight(tasks, targets, weights), dict(weights or {}), scale, class_weights)

    def __post_init__(self) -> None:
        checked_tasks(self.tasks)
        object.__setattr__(self, "weights", task_weights(self.tasks, self.weights))
        if self.divisor <= 0:
            raise RecipeError("no slide of this step has a label for any task")
        for task in self.tasks:
            if task.loss == "cox":
                raise RecipeError(
                    f"task {task.name}: slides are learned from one at a time, so survival needs time cuts (hazards)"
                )

    def terms(self, outputs: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        """One slide's part of the loss, a task: 0-d tensors, 0 where it has no label.

        outputs: task -> logits [1, k]; targets: as `task_losses` takes them, for one slide. Their sum over tasks,
        slides and processes is the loss of the step.
        """
        losses = task_losses(outputs, targets, self.tasks, self.class_weights, reduction="none")
        return {name: self.scale * self.weights[name] / self.divisor * loss.sum() for name, loss in losses.items()}


def task_weights(tasks: Sequence[SlideTask], weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Weight of each task: as given, else 1/√(classes or time bins). Raises RecipeError for a bad name or value."""
    given = dict(weights or {})
    unknown = sorted(set(given) - {task.name for task in tasks})
    if unknown:
        raise RecipeError(f"a weight is given for task {unknown[0]}, which is not learned")
    for name, weight in given.items():
        if not weight > 0:
            raise RecipeError(f"the weight of task {name} must be above 0, not {weight}")
    return {task.name: given.get(task.name, task.outputs**-0.5) for task in tasks}


def label_weight(
    tasks: Sequence[SlideTask], targets: Iterable[Targets], weights: Mapping[str, float] | None = None
) -> float:
    """Σ w_t over all labels that are present: the divisor of `SlideObjective`. targets: one mapping a slide."""
    every = task_weights(tasks, weights)
    return sum(every[task.name] * int(labelled(task, found[task.name]).sum()) for found in targets for task in tasks)
