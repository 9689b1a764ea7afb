"""ABMIL with gated attention (Ilse et al. 2018): one attention over the bag, one linear a task."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eosin.models.mil.attention import AttentionHead, GatedAttention
from eosin.models.mil.head import Drops
from eosin.models.mil.settings import AttentionSettings
from eosin.models.slide_task import SlideTask


class Abmil(AttentionHead):
    """Features -> hidden (512) ReLU -> gated attention (384) -> bag vector -> one linear a task. Branch "all"."""

    branches = ("all",)

    def __init__(self, kind: str, width: int, tasks: tuple[SlideTask, ...], settings: AttentionSettings) -> None:
        super().__init__(kind, width, tasks, settings, settings.attention)
        self.attention = GatedAttention(settings.hidden, settings.attention, 1, settings.gated)
        self.classifiers = nn.ModuleList(nn.Linear(settings.hidden, task.outputs) for task in self.tasks)

    def compute(self, tiles: Tensor, present: Tensor, targets: dict[str, Tensor], drops: Drops) -> dict[str, Any]:
        """See MilHead.compute; targets are not read."""
        hidden, scores, attention = self.attend(tiles, present, drops)
        vector = (attention @ hidden)[:, 0]  # [B, hidden]
        outputs = {task.name: linear(vector) for task, linear in zip(self.tasks, self.classifiers, strict=True)}
        return {"outputs": outputs, "attention": attention, "vector": vector, "attention_logits": scores}
