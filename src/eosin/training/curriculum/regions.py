"""DINO on regions: views are sub-grids of a region's stage-1 vectors (as HIPT's second stage, arXiv 2206.02647).

The teacher's stage 2 reads the teacher's stage-1 vectors of the two global views; the student's reads its own of all
views. One region is one term, so the loss is a sum over regions and slides can be worked off one at a time. Targets are
centered (DINO): balancing them over a batch would need all regions of the step at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eosin.models.pyramid_pixels import Pixels
from eosin.models.pyramid_stage import GridEncoder, Grids
from eosin.objectives.dino import view_losses
from eosin.objectives.targets import center_offset, target
from eosin.randomness import Words
from eosin.tiles.pyramid_grid import RegionGrid
from eosin.training.curriculum.config import RegionViews
from eosin.training.curriculum.networks import CurriculumNetworks

Tiles = npt.NDArray[np.int64]


@dataclass(frozen=True)
class View:
    """One sub-grid: which of the region's tiles it has, [n], and where they stand in it."""

    tiles: Tiles
    row: Tiles
    column: Tiles


def draw_views(grid: RegionGrid, region: int, views: RegionViews, words: Words) -> tuple[list[View], list[View]]:
    """Two global and the local views of a region: corners uniform over all places where a view holds a tile."""
    span = grid.span(region)
    row, column = grid.row[span], grid.column[span]

    def view(side: int) -> View:
        places = np.arange(views.side - side + 1)
        inside = (row[None] >= places[:, None]) & (row[None] < places[:, None] + side)  # [p, n]
        across = (column[None] >= places[:, None]) & (column[None] < places[:, None] + side)
        corners = np.argwhere(inside.astype(np.int64) @ across.T.astype(np.int64) > 0)  # [k, 2]
        top, left = corners[int(words.integers(len(corners), 1)[0])]
        tiles = np.flatnonzero(inside[top] & across[left])
        return View(tiles, row[tiles] - top, column[tiles] - left)

    wide = [view(views.global_side) for _ in range(2)]
    return wide, [view(views.local_side) for _ in range(views.local_count)]


class RegionDino:
    """The region loss of one optimiser step (`whole_slide.RegionLoss`)."""

    def __init__(
        self,
        networks: CurriculumNetworks,
        views: RegionViews,
        wanted: Mapping[str, Set[int]],
        *,
        key: tuple[int, int],
        weight: float,
        temperatures: tuple[float, float],
        autocast: AbstractContextManager[Any],
        tile_chunk: int,
    ) -> None:
        """wanted: slide -> regions, of the whole step. key: seed and step. weight: of the mean over all regions.
        temperatures: student's and teacher's. tile_chunk: tiles that the teacher's stage 1 sees at once.
        """
        self.networks, self.views, self.wanted, self.key = networks, views, wanted, key
        self.scale = weight / max(sum(map(len, wanted.values())), 1)
        self.student_temperature, self.teacher_temperature = temperatures
        self.autocast, self.tile_chunk = autocast, tile_chunk
        self.logit_sum = torch.zeros_like(networks.region_center)
        """Sum over the teacher's views so far, [1, K]: what the center moves by."""
        self.logit_count = 0
        self._targets: dict[tuple[str, int], Tensor] = {}

    def wants(self, slide: str, region: int) -> bool:
        """See RegionLoss."""
        return region in self.wanted.get(slide, ())

    def _views(self, slide: str, grid: RegionGrid, region: int) -> tuple[list[View], list[View]]:
        return draw_views(grid, region, self.views, Words(self.key[0], "region views", self.key[1], slide, region))

    @torch.no_grad()
    def see(self, slide: str, grid: RegionGrid, region: int, pixels: Pixels) -> None:
        """See RegionLoss: the teacher's targets of the two global views, [2, 1, K]."""
        teacher = self.networks.teacher
        device = self.logit_sum.device
        whole = torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())
        with self.autocast:
            vectors = torch.cat([teacher.tile(part.to(device)) for part in whole.split(self.tile_chunk)])
            seen = encode_views(teacher.region, vectors, self._views(slide, grid, region)[0], self.views.global_side)
            logits = teacher.region_dino(seen).logits()  # [2, K]
        self.logit_sum += logits.to(self.logit_sum).sum(dim=0, keepdim=True)
        self.logit_count += len(logits)
        offset = center_offset(self.networks.region_center, self.teacher_temperature)
        self._targets[slide, region] = target(logits, offset, self.teacher_temperature)[:, None]

    def loss(self, slide: str, grid: RegionGrid, region: int, vectors: Tensor) -> Tensor:
        """See RegionLoss."""
        student = self.networks.student
        wide, small = self._views(slide, grid, region)
        words = Words(self.key[0], "region view drop path", self.key[1], slide, region)
        factors = drop_factors(student.region.rates, len(wide) + len(small), words)
        with self.autocast:
            parts = [encode_views(student.region, vectors, wide, self.views.global_side, _of(factors, 0, len(wide)))]
            if small:
                rest = _of(factors, len(wide), len(wide) + len(small))
                parts.append(encode_views(student.region, vectors, small, self.views.local_side, rest))
            scores = student.region_dino(torch.cat(parts))
        crossed, local = view_losses(scores, self._targets.pop((slide, region)), self.student_temperature)
        return self.scale * (crossed + local)


def encode_views(
    stage: GridEncoder, vectors: Tensor, views: list[View], side: int, factors: Tensor | None = None
) -> Tensor:
    """Vectors [V, d2] of views of one size; vectors: of the region's tiles, [n, d1]."""
    tiles, row, column = (
        torch.from_numpy(np.concatenate([getattr(view, name) for view in views])).to(vectors.device)
        for name in ("tiles", "row", "column")
    )
    grids = Grids(tuple(len(view.tiles) for view in views), row, column)
    return stage(vectors[tiles], grids, factors, (side, side)).grids


def drop_factors(rates: tuple[float, ...], views: int, words: Words) -> Tensor | None:
    """Drop path of views in stage 2, [layers, 2, views]: 0 or 1 / (1 - rate); None where nothing is dropped."""
    if not any(rates):
        return None
    keep = 1.0 - np.asarray(rates)[:, None, None]
    return torch.from_numpy((words.uniform(len(rates), 2, views) < keep) / keep)


def _of(factors: Tensor | None, first: int, last: int) -> Tensor | None:
    return None if factors is None else factors[:, :, first:last]
