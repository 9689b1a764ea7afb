"""A recipe of the curriculum: everything of a pre-training recipe, and the pyramid, the tasks and the two steps.

`encoder: start` takes stage 1's settings from the weights that `start` names (`start.py`).
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from eosin.models.pyramid_config import PyramidConfig
from eosin.training.curriculum.config import LabelValues, LoraValues, PyramidValues, StepOne, StepTwo, TaskValues
from eosin.training.recipe import Recipe, RunConfig
from eosin.training.whole_slide import WholeSlideSettings


class CurriculumRun(RunConfig):
    """As in pre-training; `steps` is the length of step 1, `batch` the tiles of DINO in both steps."""

    steps: int = Field(ge=0, description="optimiser steps of step 1; 0 begins with step 2")


class CurriculumRecipe(Recipe):
    """Everything that decides what a curriculum run learns."""

    run: CurriculumRun
    pyramid: PyramidValues
    step1: StepOne
    step2: StepTwo
    tasks: list[TaskValues] = Field(default_factory=list, description="none: every column of the cohort that is a task")
    labels: LabelValues = Field(default_factory=lambda: LabelValues.model_validate({}))
    lora: LoraValues = Field(default_factory=lambda: LoraValues.model_validate({}))
    whole_slide: WholeSlideSettings = Field(default_factory=lambda: WholeSlideSettings.model_validate({}))

    @model_validator(mode="after")
    def _can_be_learned(self) -> CurriculumRecipe:
        goal = self.objective
        if goal.ibot_weight or goal.uniformity != "none":
            raise ValueError("the curriculum learns by DINO alone: objective.ibot_weight 0 and uniformity none")
        if self.encoder.drop_path and self.encoder.drop_path_form != "sample":
            raise ValueError("encoder.drop_path_form must be sample: slides are run in chunks of any size")
        if self.run.minutes is not None:
            raise ValueError("run.minutes does not go with a curriculum; give run.steps and step2.passes")
        if self.run.steps == 0 and self.step2.passes == 0:
            raise ValueError("run.steps and step2.passes are both 0: there is nothing to learn")
        if self.parallel.strategy == "fsdp" or self.parallel.compile or self.parallel.recompute != "none":
            raise ValueError("parallel.strategy, compile and recompute are those of pre-training; see whole_slide")
        if self.pyramid.tile_px % self.encoder.patch:
            raise ValueError(f"pyramid.tile_px {self.pyramid.tile_px} is no multiple of encoder.patch")
        regions_first = self.run.steps and self.step1.regions.count and self.step1.region_weight
        if self.pyramid.region.standardise and regions_first:
            raise ValueError(
                "pyramid.region.standardise begins with step 2; without DINO on regions before it, please:"
                " step1.regions.count 0 or run.steps 0"
            )
        if self.step2.regions.side != self.pyramid.side:
            raise ValueError(f"step2.regions.side must be pyramid.side ({self.pyramid.side})")
        columns = [task.column for task in self.tasks]
        if twice := [column for column in columns if columns.count(column) > 1]:
            raise ValueError(f"tasks: column {twice[0]} is given twice")
        return self

    @property
    def stages(self) -> PyramidConfig:
        """The three stages of the network."""
        return PyramidConfig(
            tile=self.encoder,
            tile_px=self.pyramid.tile_px,
            mean=self.views.mean,
            std=self.views.std,
            region=self.pyramid.region,
            slide=self.pyramid.slide,
            side=self.pyramid.side,
        )

    def deciding_values(self) -> dict[str, Any]:
        """See Recipe."""
        told = super().deciding_values()
        told["whole_slide"] = {"region_grad": told["whole_slide"]["region_grad"]}
        for quiet in ("save_slides", "checkpoint_every"):
            told["step2"].pop(quiet)
        for quiet in ("watch_every", "watch_slides"):
            told["labels"].pop(quiet)
        return told
