"""The pyramid: a slide's tiles -> regions of 16 × 16 tiles -> the slide, with one linear a slide task at the top.

EXAONE Path 2.0 (arXiv 2507.06639) and HIPT (arXiv 2206.02647). Only tissue tiles are encoded: background is absent from
stages 2 and 3. All norms are LayerNorm, so a tile's vector does not depend on its company. The network draws no random
numbers, reads no pixels and holds no slide: `pyramid_encode.py` runs it over a slide, `training/whole_slide` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from eosin.errors import RecipeError
from eosin.models.pyramid_config import PyramidConfig
from eosin.models.pyramid_stage import GridEncoder, Grids, GridVectors
from eosin.models.pyramid_tiles import TileStage, VitTiles
from eosin.models.slide_task import SlideTask, checked_tasks
from eosin.models.vit import ViT
from eosin.tiles.pyramid_grid import RegionGrid


class Pyramid(nn.Module):
    """Three encoders and the heads.

    config: `PYRAMIDS["exaone"]`, `PYRAMIDS["hipt"]` or one's own. tasks: what the heads predict of a slide; none for a
    pyramid without heads. tiles: stage 1 where `config.tile` is none: `VitTiles` or `NetworkTiles`. Start weights are
    drawn from `generator`. Raises RecipeError where stage 1 is given twice or not at all.
    """

    def __init__(
        self,
        config: PyramidConfig,
        tasks: Sequence[SlideTask] = (),
        tiles: TileStage | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if (tiles is None) == (config.tile is None):
            raise RecipeError("stage 1 of a pyramid comes from its config or is handed over, one of the two")
        self.config = config
        self.tasks = checked_tasks(tasks) if tasks else ()
        if tiles is None:
            assert config.tile is not None
            tiles = VitTiles(ViT(config.tile, generator), config.tile_px, config.mean, config.std)
        self.tile = tiles
        self.region = GridEncoder(tiles.width, config.region, config.side, generator)
        self.slide = GridEncoder(config.region.width, config.slide, config.side, generator)
        self.heads = nn.ModuleList([nn.Linear(config.slide.width, task.outputs) for task in self.tasks])
        for head in self.heads:
            nn.init.trunc_normal_(head.weight, std=0.02, generator=generator)
            nn.init.zeros_(head.bias)

    @property
    def stages(self) -> Mapping[str, nn.Module]:
        """The parts that a recipe gives their own learning rates."""
        return {"tile": self.tile, "region": self.region, "slide": self.slide, "heads": self.heads}

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.tile.mean.device

    def encode_regions(
        self,
        vectors: Tensor,
        grid: RegionGrid,
        first: int,
        last: int,
        factors: Tensor | None = None,
        look: bool = False,
    ) -> GridVectors:
        """Stage 2: tile vectors [n, d1] of regions first..last-1 of `grid` -> `grids` [last - first, d2]."""
        rows = slice(int(grid.start[first]), int(grid.start[last]))
        row, column = (torch.from_numpy(x[rows]).to(vectors.device) for x in (grid.row, grid.column))
        counts = tuple(grid.counts[first:last].tolist())
        return self.region(vectors, Grids(counts, row, column), factors, (grid.side, grid.side), look)

    def encode_slide(
        self, vectors: Tensor, grid: RegionGrid, factors: Tensor | None = None, look: bool = False
    ) -> GridVectors:
        """Stage 3: region vectors [R, d2] of all regions of `grid` -> `grids` [1, d3]."""
        row, column = (torch.from_numpy(x).to(vectors.device) for x in (grid.region_row, grid.region_column))
        return self.slide(vectors, Grids((len(grid),), row, column), factors, grid.shape, look)

    def predict(self, slide: Tensor) -> dict[str, Tensor]:
        """Slide vectors [B, d3] -> task -> logits [B, task.outputs]."""
        return {task.name: head(slide) for task, head in zip(self.tasks, self.heads, strict=True)}
