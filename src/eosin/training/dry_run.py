"""`eosin train --dry-run`: everything a run would check, and what it would do, without writing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eosin.optim import make_schedules
from eosin.tiles import FolderSource, SlideSource
from eosin.training.networks import Branch
from eosin.training.recipe import load_recipe
from eosin.training.train import tile_plan


def describe(
    recipe: str,
    cohort: Sequence[str],
    tiles: Sequence[str],
    mpp: float | None,
    where: str | None,
    changes: Sequence[str],
) -> str:
    """What the run would be, one fact a line. Raises what the run itself would raise before its first step."""
    chosen, _ = load_recipe(recipe, list(changes))
    plan = tile_plan(chosen, cohort, tiles, mpp, where)
    tile = plan.tile(0)
    with torch.device("meta"):
        branch = Branch(chosen, torch.Generator())
    encoder, heads = (sum(p.numel() for p in part) for part in (branch.encoder.parameters(), _heads(branch)))
    schedules = make_schedules(chosen.optim, chosen.run.steps, chosen.run.batch)
    seen = chosen.run.steps * chosen.run.batch
    lines = [
        f"recipe        {chosen.name} ({chosen.hash})",
        f"parameters    encoder {encoder / 1e6:.1f} M, heads {heads / 1e6:.1f} M",
        f"steps         {chosen.run.steps} of {chosen.run.batch} tiles = {seen / 1e6:.3g} M tiles",
        f"learning rate {schedules.lr.max():.3g} at its peak",
    ]
    for source, weight in zip(plan.sources, plan.weights, strict=True):
        if isinstance(source, SlideSource):
            lines.append(f"slides        {len(source)} from {source.cohort.path}, weight {weight:g}")
        elif isinstance(source, FolderSource):
            lines.append(
                f"tiles         {len(source)} images of {source.mpp:g} µm/px from {source.where}, weight {weight:g}"
            )
        lines.append(f"µm/px         {source.config.scales_text}")
    lines.append(
        f"first tile    {tile.address.name} at ({tile.address.x}, {tile.address.y}), {tile.address.mpp:g} µm/px"
    )
    return "\n".join(lines)


def _heads(branch: Branch) -> list[torch.nn.Parameter]:
    return [parameter for head in branch.heads for parameter in head.parameters()]
