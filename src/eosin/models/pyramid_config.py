"""What fixes the three encoders of a pyramid, and the two published shapes by name.

`exaone`: EXAONE Path 2.0 (arXiv 2507.06639): three ViTs of width 768; the depths of stages 2 and 3 were not published
and are ours. `hipt`: HIPT (Chen et al. 2022, arXiv 2206.02647): ViT-S/16, then 192 wide, gated attention at the end.
Where HIPT drops numbers (dropout), ours drops residual branches.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from eosin.models.presets import PRESETS
from eosin.models.vit import EncoderConfig
from eosin.tiles.pyramid_grid import REGION_SIDE


class StageConfig(BaseModel):
    """Stage 2 or 3: a ViT over the vectors of a grid with holes (`pyramid_stage.GridEncoder`).

    Of depth 0 it is gated attention alone (Ilse et al. 2018), which knows no places: what fits few slides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: int = Field(gt=0)
    depth: int = Field(ge=0, description="transformer blocks; 0: none and no positions, only with pool gated")
    heads: int = Field(gt=0)
    mlp_ratio: float = Field(default=4.0, gt=0)
    enter: Literal["if-needed", "linear", "gelu", "relu"] = Field(
        default="if-needed",
        description="how vectors come in: by a linear where widths differ, by one anyway, with GELU or ReLU behind it",
    )
    positions: Literal["table", "rotary"] = Field(
        description="table: learned, for grids of a known size (regions); rotary: for grids of any size (slides)"
    )
    rotary_base: float = Field(default=100.0, gt=1)
    pool: Literal["cls", "gated"] = Field(
        default="cls", description="the vector of a grid: its CLS token, or gated attention over its tokens"
    )
    standardise: bool = Field(
        default=False,
        description="region: tile vectors come in with mean 0 and sd 1, of tiles measured when step 2 begins",
    )
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    drop_path_law: Literal["uniform", "linear"] = "uniform"
    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.depth == 0 and self.pool != "gated":
            raise ValueError("depth 0 needs pool gated: without blocks a CLS token sees nothing")
        if self.depth:  # the blocks' own settings refuse what cannot be
            self.blocks(REGION_SIDE)
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, whole: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `standardise` where it is off: hashes of recipes and exports from before it are theirs."""
        told: dict[str, Any] = whole(self)
        if not self.standardise:
            told.pop("standardise", None)
        return told

    def blocks(self, grid: int) -> EncoderConfig:
        """The settings of the stage's transformer blocks, where it has some; `grid`: side of its position table."""
        return EncoderConfig(
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            patch=1,
            grid=grid,
            mlp_ratio=self.mlp_ratio,
            positions=self.positions,
            rotary_base=self.rotary_base,
            drop_path=self.drop_path,
            drop_path_law=self.drop_path_law,
            norm_eps=self.norm_eps,
        )


class PyramidConfig(BaseModel):
    """All three stages. Tiles come as pixels, `side` × `side` of them are a region, regions are the slide."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tile: EncoderConfig | None = Field(
        default=None, description="stage 1, our ViT; none: the encoder is handed over (`pyramid_tiles.TileStage`)"
    )
    tile_px: int = Field(default=256, gt=0, description="side of a tile as stage 1 sees it")
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    region: StageConfig
    slide: StageConfig
    side: int = Field(default=REGION_SIDE, gt=0, description="tiles along a region")

    @model_validator(mode="after")
    def _standardises(self) -> Self:
        if self.slide.standardise:
            raise ValueError("only tile vectors can be standardised (region): those of regions are still being learned")
        return self


def _exaone() -> PyramidConfig:
    tile = PRESETS["vit_base_patch16"].model_copy(update={"grid": 16, "drop_path": 0.1, "interpolation": "antialias"})
    return PyramidConfig(
        tile=tile,
        region=StageConfig(width=768, depth=6, heads=12, positions="table", drop_path=0.1),
        slide=StageConfig(width=768, depth=2, heads=12, positions="rotary", drop_path=0.1),
    )


def _hipt() -> PyramidConfig:
    tile = PRESETS["vit_small_patch16"].model_copy(update={"grid": 16, "drop_path": 0.1, "interpolation": "antialias"})
    return PyramidConfig(
        tile=tile,
        region=StageConfig(width=192, depth=6, heads=6, enter="gelu", positions="table", drop_path=0.1),
        slide=StageConfig(
            width=192, depth=2, heads=3, mlp_ratio=1.0, enter="relu", positions="rotary", pool="gated", drop_path=0.1
        ),
    )


PYRAMIDS: dict[str, PyramidConfig] = {"exaone": _exaone(), "hipt": _hipt()}
"""Published shapes by name."""
