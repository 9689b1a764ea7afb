"""ABMIL with gated attention (Ilse et al. 2018): one attention over the bag, one linear a task."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from eosin.models.mil.attention import AttentionHead, GatedAttention
from eosin.models.mil.head import Drops
from eosin.models.mil.settings import AbmilSettings
from eosin.models.slide_task import SlideTask


class Abmil(AttentionHead):
    """Features -> hidden (512) ReLU -> gated attention (384) -> bag vector -> one linear a task. Branch "all".

    With `mlp`, ReLU layers of these widths, each task's own, lie between bag vector and logits.
    """

    branches = ("all",)
    settings: AbmilSettings

    def __init__(self, kind: str, width: int, tasks: tuple[SlideTask, ...], settings: AbmilSettings) -> None:
        super().__init__(kind, width, tasks, settings, settings.attention)
        self.attention = GatedAttention(settings.hidden, settings.attention, 1, settings.gated)
        self.classifiers = nn.ModuleList(self._classifier(task) for task in self.tasks)

    def _classifier(self, task: SlideTask) -> nn.Module:
        widths = (self.settings.hidden, *self.settings.mlp)
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        last = nn.Linear(widths[-1], task.outputs)
        return nn.Sequential(*layers, last) if layers else last

    def activated(self, hidden: Tensor) -> Tensor:
        """ReLU, or nothing."""
        return hidden if self.settings.activation == "none" else super().activated(hidden)

    def compute(self, tiles: Tensor, present: Tensor, targets: dict[str, Tensor], drops: Drops) -> dict[str, Any]:
        """See MilHead.compute; targets are not read."""
        hidden, scores, attention = self.attend(tiles, present, drops)
        vector = (attention @ hidden)[:, 0]  # [B, hidden]
        outputs = {task.name: linear(vector) for task, linear in zip(self.tasks, self.classifiers, strict=True)}
        return {"outputs": outputs, "attention": attention, "vector": vector, "attention_logits": scores}
