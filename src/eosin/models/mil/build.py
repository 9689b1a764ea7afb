"""MIL heads by name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from eosin.errors import RecipeError
from eosin.models.mil.abmil import Abmil
from eosin.models.mil.clam import Clam
from eosin.models.mil.head import MilHead
from eosin.models.mil.pooled import PooledHead
from eosin.models.mil.settings import AbmilSettings, ClamSettings, HeadSettings, TransformerSettings
from eosin.models.mil.transformer import TransformerHead
from eosin.models.slide_task import SlideTask, checked_tasks
from eosin.randomness import Words

KINDS: dict[str, tuple[type[MilHead], type[HeadSettings]]] = {
    "clam-sb": (Clam, ClamSettings),
    "clam-mb": (Clam, ClamSettings),
    "abmil": (Abmil, AbmilSettings),
    "transmil": (TransformerHead, TransformerSettings),
    "mean-linear": (PooledHead, HeadSettings),
    "max-linear": (PooledHead, HeadSettings),
    "linear": (PooledHead, HeadSettings),
}
HEADS = tuple(KINDS)


def build_head(kind: str, width: int, tasks: Iterable[SlideTask | Mapping[str, Any]], **settings: Any) -> MilHead:
    """A head with start weights drawn from its `seed` setting.

    kind: one of HEADS; width: numbers a tile's feature vector has; tasks: what it predicts, as SlideTask or its
    dictionary. settings: see `eosin.models.mil.settings`. `build_head(**head.config())` builds the same head again.
    Raises RecipeError on an unknown kind or setting, DataError on tasks that do not go together.
    """
    if kind not in KINDS:
        raise RecipeError(f"unknown head {kind!r}; choose from {', '.join(HEADS)}")
    head_class, settings_class = KINDS[kind]
    try:
        checked = settings_class(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        known = ", ".join(settings_class.model_fields)
        raise RecipeError(f"head {kind}: setting {name}: {first['msg']} (it has: {known})") from None
    found = checked_tasks(task if isinstance(task, SlideTask) else SlideTask.from_dict(task) for task in tasks)
    head = head_class(kind, width, found, checked)
    start(head, checked.seed)
    return head


@torch.no_grad()
def start(head: MilHead, seed: int) -> None:
    """Start weights: linears as torch starts them, uniform within 1 / sqrt(fan-in); norms 1 and 0; the CLS sd .02.

    Heads that are one linear a task start at zero: their loss is convex, and where training stops early on a handful of
    bags a random direction would be left in them.
    """
    generator = torch.Generator().manual_seed(int(Words(seed, "mil-start").integers(2**62)))
    if next(head.parameters()).is_meta:
        return
    for module in head.modules():
        if isinstance(module, nn.Linear):
            bound = 0.0 if isinstance(head, PooledHead) else 1 / math.sqrt(module.in_features)
            module.weight.uniform_(-bound, bound, generator=generator)
            if module.bias is not None:
                module.bias.uniform_(-bound, bound, generator=generator)
    if isinstance(head, TransformerHead):
        head.cls.normal_(std=0.02, generator=generator)
