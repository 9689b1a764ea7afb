"""The settings of multi-crop views. Why: every line of a published augmentation recipe is one value here.

It draws and renders nothing (multicrop.py) and applies no rule of its own: a recipe with HED jitter that
wants halved colour strengths and no solarisation says so in its values.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Strength = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class ViewsConfig(BaseModel):
    """Crops and photometric chain of a recipe. Defaults are DINOv2's for 224-px globals, with our turns.

    Sizes are pixels of the crop after resizing, scales shares of the tile's area, probabilities per crop.
    Brightness, contrast, saturation and hue mean what they mean in torchvision's ColorJitter.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    global_px: int = Field(224, ge=8, description="side of a global crop")
    global_scale: tuple[Share, Share] = (0.32, 1.0)
    global_count: int = Field(2, ge=1)
    local_px: int = Field(98, ge=8, description="side of a local crop")
    local_scale: tuple[Share, Share] = (0.05, 0.32)
    local_count: int = Field(8, ge=0)
    ratio: tuple[Positive, Positive] = Field((3 / 4, 4 / 3), description="width / height, drawn log-uniformly")
    interpolation: Literal["bicubic", "bilinear"] = Field("bicubic", description="antialiased in either case")

    horizontal_flip: Probability = 0.5
    vertical_flip: Probability = 0.5
    quarter_turns: bool = Field(True, description="turn by 0, 90, 180 or 270 degrees with equal chance")

    hed_sigma: Strength = Field(0.0, description="HED jitter in natural-log optical density; 0 is off")
    hed_probability: Probability = 1.0

    jitter_probability: Probability = 0.8
    brightness: Strength = 0.4
    contrast: Strength = 0.4
    saturation: Strength = 0.2
    hue: Annotated[float, Field(ge=0.0, le=0.5)] = 0.1
    grey_probability: Probability = 0.2

    blur_probability: tuple[Probability, Probability, Probability] = Field(
        (1.0, 0.1, 0.5), description="first global view, other global views, local views"
    )
    blur_sigma: tuple[Positive, Positive] = Field((0.1, 2.0), description="pixels of the crop")
    blur_kernel_px: int = Field(9, ge=3)
    blur_order: Literal["after", "before"] = Field("after", description="after or before stain and colour")
    solarise_probability: Probability = Field(0.2, description="global views but the first")
    solarise_threshold: Probability = 0.5

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)

    @model_validator(mode="after")
    def _ranges_hold(self) -> ViewsConfig:
        for name in ("global_scale", "local_scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name}: {low} is above {high}; give the smaller number first")
        if self.blur_kernel_px % 2 == 0:
            raise ValueError(f"blur_kernel_px: {self.blur_kernel_px} is even; the kernel needs a middle pixel")
        smallest = min(self.global_px, self.local_px) if self.local_count else self.global_px
        if self.blur_kernel_px // 2 >= smallest:
            raise ValueError(f"blur_kernel_px: {self.blur_kernel_px} is too wide for crops of {smallest} px")
        return self
