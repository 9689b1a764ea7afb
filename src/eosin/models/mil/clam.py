"""CLAM-SB and CLAM-MB (Lu et al. 2021), for several tasks at once.

With one classification task both equal the published code on the same weights (benchmarks/clam). What differs is
said here. Their dropout argument is a truth value inside the attention network, where .25 is fixed: the value given
is the one used here, and `attention_dropout=0.25` gives theirs. Their top-k stops with an error on a bag of fewer
than k tiles: k is at most the bag's tiles here. Their instance loss looks at the label's class only, unless
`subtyping`: that is kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eosin.errors import DataError
from eosin.models.mil.attention import AttentionHead, GatedAttention
from eosin.models.mil.head import Drops
from eosin.models.mil.instances import instance_loss
from eosin.models.mil.settings import ClamSettings
from eosin.models.slide_task import SlideTask


class Clam(AttentionHead):
    """Features -> 512 ReLU -> gated attention (256 small, 384 big) -> one classifier and one instance loss a task.

    `clam-sb`: one attention for all tasks, branch "all". `clam-mb`: one a class, "task: class", where a class's logit
    reads its own bag vector; a regression or survival task has one branch of its own, "task". Tasks with classes have
    instance classifiers; if none has, there is no auxiliary loss and `bag_weight` is 1.
    """

    settings: ClamSettings

    def __init__(self, kind: str, width: int, tasks: tuple[SlideTask, ...], settings: ClamSettings) -> None:
        super().__init__(kind, width, tasks, settings, settings.attention_width)
        unknown = set(settings.task_weights) - {task.name for task in tasks}
        if unknown:
            raise DataError(f"task_weights names {sorted(unknown)[0]}, which is no task of this head")
        self.many = kind == "clam-mb"
        self.branches = tuple(branch for task in self.tasks for branch in names_of(task)) if self.many else ("all",)
        self.attention = GatedAttention(settings.hidden, self.attention_width, len(self.branches), settings.gated)
        self.classifiers = nn.ModuleList(nn.Linear(settings.hidden, task.outputs) for task in self.tasks)
        self.instances = nn.ModuleList(
            nn.Linear(settings.hidden, 2 * task.outputs) if task.has_classes else nn.Identity() for task in self.tasks
        )
        self.has_instances = any(task.has_classes for task in self.tasks)
        self.bag_weight = settings.bag_weight if self.has_instances else 1.0

    def compute(self, tiles: Tensor, present: Tensor, targets: dict[str, Tensor], drops: Drops) -> dict[str, Any]:
        """See MilHead.compute. The auxiliary loss is the weighted sum over the tasks whose labels are given."""
        hidden, scores, attention = self.attend(tiles, present, drops)
        vectors = attention @ hidden  # [B, branches, hidden]
        outputs, parts, first = {}, [], 0
        for task, classifier, instances in zip(self.tasks, self.classifiers, self.instances, strict=True):
            mine = slice(first, first + len(names_of(task))) if self.many else slice(0, 1)
            first += len(names_of(task))
            if self.many and task.has_classes:
                outputs[task.name] = (vectors[:, mine] * classifier.weight).sum(dim=-1) + classifier.bias
            else:
                outputs[task.name] = classifier(vectors[:, mine][:, 0])
            if task.has_classes and task.name in targets:
                weight = instances.weight.unflatten(0, (task.outputs, 2))
                bias = instances.bias.unflatten(0, (task.outputs, 2))
                found = instance_loss(
                    hidden, attention[:, mine], present, targets[task.name], weight, bias, self.settings
                )
                parts.append(found * self.settings.task_weights.get(task.name, 1.0))
        result: dict[str, Any] = {"outputs": outputs, "attention": attention, "attention_logits": scores}
        result["vector"] = vectors if self.many else vectors[:, 0]
        if parts:
            result["auxiliary"] = torch.stack(parts).sum(dim=0)
        return result


def names_of(task: SlideTask) -> tuple[str, ...]:
    """The attention branches of a task in CLAM-MB."""
    return tuple(f"{task.name}: {name}" for name in task.classes) if task.has_classes else (task.name,)
