"""Heads without attention: mean or maximum over the bag, or a slide vector as it is, then one linear a task."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from eosin.errors import DataError
from eosin.models.mil.head import Drops, MilHead
from eosin.models.mil.settings import HeadSettings
from eosin.models.slide_task import SlideTask


class PooledHead(MilHead):
    """`mean-linear` and `max-linear` pool the tiles number by number; `linear` reads bags of one slide vector.

    `linear` is the protocol for encoders that give a vector a slide (TITAN, PRISM, CHIEF, GigaPath).
    """

    def __init__(self, kind: str, width: int, tasks: tuple[SlideTask, ...], settings: HeadSettings) -> None:
        super().__init__(kind, width, tasks, settings)
        self.classifiers = nn.ModuleList(nn.Linear(width, task.outputs) for task in self.tasks)

    def prepared(self, tiles: Tensor, present: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See MilHead.prepared; `linear` also refuses bags of more than one vector."""
        if self.kind == "linear" and tiles.ndim == 3 and tiles.shape[1] != 1:
            raise DataError(f"linear reads one vector a slide, not {tiles.shape[1]}; for tiles use mean-linear")
        return super().prepared(tiles, present, like)

    def compute(self, tiles: Tensor, present: Tensor, targets: dict[str, Tensor], drops: Drops) -> dict[str, Any]:
        """See MilHead.compute; targets are not read."""
        if self.kind == "linear":
            vector = tiles[:, 0]
        elif self.kind == "max-linear":
            vector = tiles.masked_fill(~present[..., None], -torch.inf).amax(dim=1)
        else:
            vector = tiles.sum(dim=1) / present.sum(dim=1, keepdim=True)  # padding is zeros
        outputs = {task.name: linear(vector) for task, linear in zip(self.tasks, self.classifiers, strict=True)}
        return {"outputs": outputs, "vector": vector}
