"""End-to-end learning from slide labels: the step, its strategies, its loss."""

from eosin.training.whole_slide.kept import KeptVectors
from eosin.training.whole_slide.objective import SlideObjective, label_weight, task_weights
from eosin.training.whole_slide.reduce import reduce_gradients
from eosin.training.whole_slide.sample import RegionLoss, SlideSample, slide_sample
from eosin.training.whole_slide.settings import Strategy, WholeSlideSettings
from eosin.training.whole_slide.stage1 import tile_stage
from eosin.training.whole_slide.step import (
    SlideResult,
    StepResult,
    accumulate_slide,
    slide_shares,
    whole_slide_step,
)

__all__ = [
    "KeptVectors",
    "RegionLoss",
    "SlideObjective",
    "SlideResult",
    "SlideSample",
    "StepResult",
    "Strategy",
    "WholeSlideSettings",
    "accumulate_slide",
    "label_weight",
    "reduce_gradients",
    "slide_sample",
    "slide_shares",
    "task_weights",
    "tile_stage",
    "whole_slide_step",
]
