"""Which tiles a run sees: size, scale, filters, weights. Values only; `plan.py` acts on them."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from eosin.randomness import Words

_UNCHANGED = {"tiles_per_visit": 1, "dct_halving": True}


class MppRange(BaseModel):
    """Continuous magnification: µm/px drawn between `low` and `high`, uniformly or with a uniform logarithm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    law: Literal["uniform", "log"] = "uniform"

    @model_validator(mode="after")
    def _ordered(self) -> MppRange:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class TilesConfig(BaseModel):
    """Settings of online patching. Scales in µm/px, shares in [0, 1]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size_px: int = Field(256, ge=16, description="side of a tile")
    mpp: list[float] | MppRange = Field(default_factory=lambda: [0.5], description="discrete scales, or a range")
    mpp_weights: list[float] | None = Field(None, description="weights of the discrete scales; equal without")
    drop_empty_mpp: bool = Field(False, description="leave out scales that no slide can give, renormalising")
    max_upsample: float = Field(1.05, ge=1.0, description="native µm/px may exceed the wanted one by this factor")
    min_foreground: float = Field(0.4, ge=0.0, le=1.0, description="least share of tissue in a tile")
    hsv_share: float | None = Field(None, ge=0.0, le=1.0, description="least share of pixels in the HSV window")
    slide_weights: Literal["slide", "tissue"] = Field("slide", description="equal per slide, or by tissue area")
    slides: float = Field(1.0, gt=0.0, le=1.0, description="share of patients used; smaller shares nest in larger")
    distinct_tiles: int | None = Field(None, ge=1, description="tile i is tile i mod this")
    tiles_per_visit: int = Field(1, ge=1, le=64, description="tiles cut from each place that is decoded (visits.py)")
    dct_halving: bool = Field(True, description="decode JPEG tiles at half size where a level is missing")

    @model_serializer(mode="wrap")
    def _told(self, usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that change nothing at their defaults are left out there, so that older hashes hold."""
        told = usual(self)
        return {name: told[name] for name in told if name not in _UNCHANGED or told[name] != _UNCHANGED[name]}

    @model_validator(mode="after")
    def _consistent(self) -> TilesConfig:
        if isinstance(self.mpp, list):
            if not self.mpp or min(self.mpp) <= 0:
                raise ValueError("mpp needs at least one scale above 0")
            if self.mpp_weights is not None and (
                len(self.mpp_weights) != len(self.mpp) or min(self.mpp_weights) < 0 or sum(self.mpp_weights) <= 0
            ):
                raise ValueError("mpp_weights needs one non-negative weight for each mpp, with a sum above 0")
        elif self.mpp_weights is not None:
            raise ValueError("mpp_weights goes with a list of mpp, not with a range")
        return self

    @property
    def scales_text(self) -> str:
        """The scales in words, for people."""
        if isinstance(self.mpp, MppRange):
            return f"{self.mpp.low:g} to {self.mpp.high:g}"
        return ", ".join(f"{mpp:g}" for mpp in self.mpp)

    def draw_mpp(self, words: Words) -> float:
        """One scale in µm/px."""
        if isinstance(self.mpp, list):
            return self.mpp[words.choice(self.mpp_weights or [1.0] * len(self.mpp))]
        share = float(words.uniform())
        if self.mpp.law == "log":
            return math.exp(math.log(self.mpp.low) + share * math.log(self.mpp.high / self.mpp.low))
        return self.mpp.low + share * (self.mpp.high - self.mpp.low)

    def offered_by(self, finest_mpp: float, largest_side_um: float = math.inf) -> TilesConfig:
        """The same settings with the scales that a source can give.

        finest_mpp: smallest native µm/px of the source; largest_side_um: longest tile side it can hold. Raises
        ValueError naming the first scale that it cannot give, unless `drop_empty_mpp` lets it be left out.
        """

        def possible(mpp: float) -> bool:
            return finest_mpp <= mpp * self.max_upsample and mpp * self.size_px <= largest_side_um * (1 + 1e-9)

        if isinstance(self.mpp, MppRange):
            if not (possible(self.mpp.low) and possible(self.mpp.high)):
                raise ValueError(f"no image gives the whole range {self.mpp.low:g} to {self.mpp.high:g} µm/px")
            return self
        keep = [number for number, mpp in enumerate(self.mpp) if possible(mpp)]
        if len(keep) == len(self.mpp):
            return self
        missing = next(mpp for number, mpp in enumerate(self.mpp) if number not in keep)
        if not keep or not self.drop_empty_mpp:
            raise ValueError(f"no image gives {missing:g} µm/px at {self.size_px} px")
        weights = self.mpp_weights or [1.0] * len(self.mpp)
        return self.model_copy(update={"mpp": [self.mpp[n] for n in keep], "mpp_weights": [weights[n] for n in keep]})
