"""Settings of the optimiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from eosin.optim.schedules import SchedulesConfig

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(SchedulesConfig):
    """AdamW, its groups and its schedules."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="learning-rate factor from layer to layer, towards the input"
    )
    patch_embed_factor: float = Field(1.0, ge=0, description="learning-rate factor of the patch embedding")
    clip: float = Field(3.0, gt=0, description="largest gradient norm")
    clip_by: Literal["module", "tensor"] = Field("module", description="module: DINOv2; tensor: DINO v1")
    last_layer_freeze: Literal["rate", "gradient"] = Field(
        "rate", description="rate: learning rate 0, Adam's averages move (DINOv2); gradient: nothing moves (DINO v1)"
    )
