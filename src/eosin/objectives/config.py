"""Settings of the objective: which targets, which uniformity term, how large the heads, how much is masked."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]


class ObjectiveConfig(BaseModel):
    """DINO, DINOv2 and Midnight differ in these values only."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dino_weight: float = Field(1.0, ge=0)
    ibot_weight: float = Field(1.0, ge=0, description="0 = no masked patches, no iBOT head (DINO v1)")
    dino_prototypes: int = Field(65_536, ge=2)
    ibot_prototypes: int = Field(65_536, ge=2)
    head_hidden: int = Field(2048, ge=1)
    dino_bottleneck: int = Field(256, ge=1)
    ibot_bottleneck: int = Field(256, ge=1)
    shared_head: bool = Field(False, description="masked patches go through the DINO head too (DINOv2's short recipe)")
    train_gain: bool = Field(True, description="whether the prototypes' weight-norm gain is trained")
    targets: Literal["sinkhorn", "centering"] = "sinkhorn"
    sinkhorn_iterations: int = Field(3, ge=1)
    center_momentum: float = Field(0.9, ge=0, le=1)
    student_temperature: float = Field(0.1, gt=0)
    uniformity: Literal["kde", "koleo", "none", "kde-inverted"] = Field(
        "kde", description="kde-inverted rewards collapse, as three public code bases do: for studies only"
    )
    uniformity_weight: float = Field(0.05, ge=0)
    kappa: float = Field(5.0, gt=0, description="concentration of the KDE's kernel")
    mask_probability: float = Field(0.5, ge=0, le=1, description="share of global crops that are masked")
    mask_ratio: tuple[Share, Share] = Field((0.1, 0.5), description="share of patches hidden in a masked crop")

    @model_validator(mode="after")
    def _ordered(self) -> ObjectiveConfig:
        if self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError(f"mask_ratio {self.mask_ratio}: give the smaller share first")
        if self.shared_head and (self.dino_prototypes, self.dino_bottleneck) != (
            self.ibot_prototypes,
            self.ibot_bottleneck,
        ):
            raise ValueError("with shared_head the ibot_ prototypes and bottleneck must equal the dino_ ones")
        return self
