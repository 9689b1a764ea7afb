"""How a whole-slide step is carried out: all of it changes memory and time, none of it what is learned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from eosin.models.pyramid_encode import SlideForward

Strategy = Literal["full", "checkpoint", "offload", "multi-pass"]


class WholeSlideSettings(SlideForward):
    """Settings of `whole_slide_step`. `region_grad` alone changes the gradient, since it says what is trained."""

    strategy: Strategy = Field(
        default="multi-pass",
        description="full: one graph over all tiles; checkpoint: blocks keep their input and are run again; offload:"
        " that, with the inputs in host memory; multi-pass: chunks are run again, one at a time",
    )
    keep_pixels: bool = Field(
        default=False,
        description="multi-pass: keep the slide's tiles in host memory (196 KB each at 256 px), read once",
    )
    keep_vectors_mb: float = Field(
        default=0.0,
        ge=0,
        description="host memory for the tile vectors of slides while stage 1 stands still (`step2.tile_frozen_slides`)"
        " and drops nothing: a slide is read and run through stage 1 once",
    )
    vectors: Literal["device", "host"] = Field(
        default="device", description="multi-pass: where tile vectors and their gradients wait"
    )
    spread: Literal["slides", "regions"] = Field(
        default="slides", description="what processes share out: whole slides, or the regions of every slide"
    )
    region_grad: bool = Field(
        default=False, description="the region loss reaches stage 1; without, it ends at the tile vectors"
    )
