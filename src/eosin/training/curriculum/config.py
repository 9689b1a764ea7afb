"""Settings of the curriculum: regions and their views, the two steps, the tasks, LoRA.

Values only; `recipe.py` puts them into a recipe and the rest of this package acts on them. What EXAONE Path 2.0 (arXiv
2507.06639) publishes is the order of the steps, their views and the kinds of task; every number is ours.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from eosin.models.pyramid_config import StageConfig
from eosin.models.slide_task import TaskKind
from eosin.optim.schedules import Steps

Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PyramidValues(_Values):
    """Stages 2 and 3, and the tiles of a whole slide; stage 1 is the recipe's `encoder`."""

    mpp: float = Field(0.5, gt=0, description="µm/px of the tiles")
    size_px: int = Field(256, ge=16, description="side of a tile as it is read, px of `mpp`")
    tile_px: int = Field(256, ge=16, description="side of a tile as stage 1 sees it")
    min_foreground: float = Field(0.25, ge=0, le=1, description="least share of tissue in a tile; 0: any tissue")
    side: int = Field(16, ge=2, description="tiles along a region of stage 2")
    region: StageConfig
    slide: StageConfig


class RegionViews(_Values):
    """DINO on regions, on the grid of stage-1 vectors: which regions, and the sub-grids that are their views."""

    side: int = Field(ge=2, description="tiles along a region")
    count: int = Field(ge=0, description="regions of an optimiser step; 0: no DINO on regions")
    min_tiles: int = Field(1, ge=1, description="regions with fewer tissue tiles are not drawn")
    global_side: int = Field(ge=1, description="tiles along the two global views")
    local_side: int = Field(ge=1, description="tiles along a local view")
    local_count: int = Field(ge=0)

    @model_validator(mode="after")
    def _inside(self) -> RegionViews:
        if max(self.global_side, self.local_side) > self.side:
            raise ValueError(
                f"views of {self.global_side} and {self.local_side} tiles do not fit a side of {self.side}"
            )
        if self.min_tiles > self.side**2:
            raise ValueError(f"min_tiles {self.min_tiles} is more than the {self.side**2} tiles of a region")
        return self


class StepOne(_Values):
    """Step 1: DINO on tiles through stage 1, DINO on small regions through stage 2; `run.steps` long."""

    regions: RegionViews
    tile_weight: Weight = 1.0
    region_weight: Weight = 1.0


class StepTwo(_Values):
    """Step 2: DINO on tiles kept, DINO on large regions, and slide labels through all three stages."""

    passes: float = Field(5, ge=0, description="times that every labelled slide is seen; 0: step 1 is all")
    slides: int = Field(32, ge=1, description="slides of an optimiser step")
    sampling: Literal["passes", "balanced"] = Field(
        "balanced",
        description="passes: every labelled slide once a pass; balanced: a task, one of its classes, a slide of that"
        " class, each with equal chance",
    )
    regions: RegionViews
    tile_weight: Weight = 0.5
    region_weight: Weight = 0.5
    slide_weight: Weight = 1.0
    tile_lr: Rate = 2e-5
    region_lr: Rate = 1e-4
    slide_lr: Rate = 1e-4
    heads_lr: Rate = 5e-4
    min_lr: float = Field(1e-6, ge=0)
    weight_decay: Weight = 0.05
    momentum: tuple[float, float] = (0.999, 1.0)
    teacher_temperature: float = Field(0.04, gt=0)
    warmup_slides: int = Field(500, ge=0, description="slides over which learning rates rise")
    tile_frozen_slides: int = Field(0, ge=0, description="stage 1 learns nothing for so many slides")
    region_frozen_slides: int = Field(0, ge=0, description="stage 2 learns nothing for so many slides")
    save_slides: int = Field(1, ge=0, description="gradients are saved after so many slides of a step; 0: never")
    checkpoint_every: int = Field(1, ge=1, description="optimiser steps; what was saved between slides needs its own")


class TaskValues(_Values):
    """A column of the cohort that is learned from. Survival: `column` is NAME of NAME_time and NAME_event."""

    column: str = Field(min_length=1)
    kind: TaskKind | None = Field(default=None, description="what the column says without: see `eosin mil`")
    weight: Rate | None = Field(default=None, description="1/√outputs without")


class LoraValues(_Values):
    """Low-rank adaptation of stage 1 (Hu et al. 2021): only the products of two thin matrices learn there."""

    rank: int = Field(0, ge=0, description="0: off, all of stage 1 learns")
    alpha: float = Field(16.0, gt=0, description="the product is scaled by alpha / rank")


class LabelValues(_Values):
    """Who is learned from and who is kept for watching."""

    held_out: float = Field(0.1, ge=0, lt=1, description="share of patients that nothing is learned from")
    watch_every: Steps = Field("10%", description="optimiser steps of step 2 between looks at held-out slides")
    watch_slides: int = Field(64, ge=0, description="held-out slides that are looked at, at most")
