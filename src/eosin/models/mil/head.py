"""What every MIL head shares: bags with padding in, logits of each task out, dropout drawn outside the network.

A bag is the tiles of one slide or patient, [N, D]; bags of unequal size lie padded in [B, N, D] beside `present`
[B, N]. What is computed on a bag does not depend on its padding. Dropout factors are drawn from the head's own
generator for the tiles that are present, so a run repeats exactly and padding draws nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eosin.errors import DataError
from eosin.models.mil.settings import HeadSettings
from eosin.models.slide_task import SlideTask, checked_tasks
from eosin.randomness import Words

Targets = Mapping[str, Tensor]
"""task name -> [B] int64 class (-1 missing), [B] float (NaN missing), or [B, 2] float time and event (NaN missing)."""
Drops = dict[str, Tensor]
"""Name of a dropout -> factors, 0 or 1 / (1 - rate)."""


class Dropout(NamedTuple):
    """A place where a head drops numbers."""

    rate: float
    width: int
    """Numbers of the vector that is dropped from."""
    of_tiles: bool = True
    """A vector for each tile, [B, N, width]; else one for each bag, [B, 1, width]."""

    def draw(self, present: Tensor, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        """The factors, [B, N, width] (1 at padding) or [B, 1, width]; present tiles alone draw."""
        device = generator.device
        where = present.to(device) if self.of_tiles else torch.ones(len(present), 1, dtype=torch.bool, device=device)
        factors = kept_or_not(int(where.sum()) * self.width, self.rate, generator).to(dtype)
        factors = factors.mul_(1 / (1 - self.rate)).view(-1, self.width)
        if len(factors) < where.numel():
            ones = torch.ones(*where.shape, self.width, device=device, dtype=dtype)
            factors = ones.masked_scatter_(where[..., None], factors)
        return factors.view(*where.shape, self.width).to(present.device)


class HeadOutput(NamedTuple):
    """What a head says of B bags. `StackedHeads` puts S heads before B."""

    outputs: dict[str, Tensor]
    """task -> logits [B, task.outputs]."""
    attention: Tensor | None
    """[B, branches, N], softmax over the tiles of a bag, 0 at padding; none where the head has no attention."""
    vector: Tensor
    """[B, W], or [B, branches, W] for CLAM-MB: the bag vector that the classifiers read."""
    auxiliary: Tensor | None = None
    """[B]: CLAM's instance loss, given with targets; none for other heads and without targets."""
    attention_logits: Tensor | None = None
    """[B, branches, N]: attention before its softmax, -inf at padding."""


class MilHead(nn.Module):
    """Base of the heads. Subclasses give `compute`, `dropouts` and, where they attend, `branches`."""

    branches: tuple[str, ...] = ()
    """Names of the attention branches: "all", or "task: class" for CLAM-MB."""
    bag_weight: float = 1.0
    """Share of the bag loss in the total; the rest is the auxiliary loss's."""

    def __init__(self, kind: str, width: int, tasks: Sequence[SlideTask], settings: HeadSettings) -> None:
        super().__init__()
        if width < 1:
            raise DataError(f"a head needs features of at least 1 number, not {width}")
        self.kind = kind
        self.width = width
        self.tasks = checked_tasks(tasks)
        self.settings = settings
        self.generator = torch.Generator().manual_seed(int(Words(settings.seed, "mil-dropout").integers(2**62)))

    def config(self) -> dict[str, Any]:
        """Plain data from which `build_head(**config)` builds this head again (with its start weights)."""
        tasks = [task.to_dict() for task in self.tasks]
        return {"kind": self.kind, "width": self.width, "tasks": tasks, **self.settings.model_dump()}

    def forward(self, tiles: Tensor, present: Tensor, targets: Targets | None = None) -> HeadOutput:
        """tiles [B, N, D] and present bool [B, N] -> HeadOutput; raises DataError on an empty bag or wrong shapes.

        Dropout is active in training mode only. Targets are needed for the auxiliary loss alone.
        """
        tiles, present = self.prepared(tiles, present)
        drops = self.draw(present) if self.training else {}
        return as_output(self.compute(tiles, present, dict(targets or {}), drops), self)

    def prepared(self, tiles: Tensor, present: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The bags with zeros at padding, in the precision and place of the weights or of `like`.

        Raises DataError if they do not fit the head.
        """
        if tiles.ndim != 3 or tiles.shape[2] != self.width:
            raise DataError(f"{self.kind} reads bags of shape [B, N, {self.width}], not {list(tiles.shape)}")
        if present.shape != tiles.shape[:2]:
            raise DataError(f"bags {list(tiles.shape)} need present of shape {list(tiles.shape[:2])}")
        present = present.bool()
        whole = bool(present.all())
        if not (whole and present.shape[1]) and not bool(present.any(dim=1).all()):
            raise DataError("an empty bag: a slide without a single tile cannot be scored; leave it out")
        weight = next(self.parameters()) if like is None else like
        tiles = tiles.to(weight.device, weight.dtype)
        present = present.to(weight.device)
        return (tiles if whole else tiles.masked_fill(~present[..., None], 0)), present

    def dropouts(self) -> dict[str, Dropout]:
        """The head's dropouts by name, in the order in which they are drawn."""
        return {}

    def draw(
        self, present: Tensor, generator: torch.Generator | None = None, dtype: torch.dtype | None = None
    ) -> Drops:
        """Dropout factors for the present tiles of bags [B, N], from `generator` or the head's own.

        In the precision of the weights, or `dtype`.
        """
        source, dtype = generator or self.generator, dtype or next(self.parameters()).dtype
        found = {name: drop for name, drop in self.dropouts().items() if drop.rate > 0}
        return {name: drop.draw(present, source, dtype) for name, drop in found.items()}

    def compute(self, tiles: Tensor, present: Tensor, targets: dict[str, Tensor], drops: Drops) -> dict[str, Any]:
        """Pure function of its arguments and the weights: HeadOutput's fields that are not none.

        No check, no draw and no branch on data, so `torch.func.vmap` can run it for S heads at once.
        """
        raise NotImplementedError

    @torch.no_grad()
    def tile_outputs(self, tiles: Tensor, chunk: int = 4096) -> dict[str, Tensor]:
        """Each tile as a bag of one: tiles [N, D] -> task -> logits [N, task.outputs]; in evaluation mode."""
        was = self.training
        self.eval()
        try:
            parts = []
            for some in tiles.split(chunk):
                present = torch.ones(len(some), 1, dtype=torch.bool, device=some.device)
                parts.append(self(some[:, None], present).outputs)
        finally:
            self.train(was)
        return {task.name: torch.cat([part[task.name] for part in parts]) for task in self.tasks}


def kept_or_not(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """bool [count], False with probability `rate` (to 2**-16): 16 random bits a number, four numbers a drawn word.

    Several times faster than `bernoulli_`, which for a small head costs as much as the forward pass.
    """
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=generator.device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    return bits >= round(rate * 2**16) - 2**15


def as_output(found: dict[str, Any], head: MilHead) -> HeadOutput:
    """HeadOutput of what `compute` returned, tasks in their order."""
    outputs = {task.name: found["outputs"][task.name] for task in head.tasks}
    others = {name: found.get(name) for name in ("attention", "vector", "auxiliary", "attention_logits")}
    return HeadOutput(outputs=outputs, **others)  # type: ignore[arg-type]


def dropped(x: Tensor, drops: Drops, name: str) -> Tensor:
    """x times the drawn factors of that name; x itself in evaluation or at rate 0."""
    return x * drops[name] if name in drops else x
