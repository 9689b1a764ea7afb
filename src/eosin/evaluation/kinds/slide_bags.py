"""The bags of a slide task: tissue tiles of each slide, read at their µm/px and embedded, or features kept elsewhere.

A bag is at most so many tissue tiles as the task says, drawn from the slide's grid by a keyed stream, side by side, at
least a quarter tissue. Each slide's features are kept under a name of their own, so a killed call loses one slide at
most. eva reads the same number from its own grid with its own tissue rule: the tiles are not the same ones.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from eosin.errors import DataError
from eosin.evaluation.kinds.kind import Asked
from eosin.evaluation.tasks.slides import SlideFiles
from eosin.features.store import FeatureStore
from eosin.progress import progress_bar
from eosin.provenance import file_identity, hash_of
from eosin.randomness import Words
from eosin.slides import find_foreground, open_slide
from eosin.tiles.grid import TileGrid, tissue_grid
from eosin.tiles.grid_stream import GridPart, GridSlide, read_grids

Floats = npt.NDArray[np.float32]
MIN_FOREGROUND = 0.25
_BYTES = 8 * 2**30


class HeldBags(Sequence[Floats]):
    """Bags that are read once and kept as long as `most` bytes allow; the longest unused go first."""

    def __init__(self, bags: Sequence[Floats], most: int = _BYTES) -> None:
        self._bags, self._most, self._bytes = bags, most, 0
        self._held: OrderedDict[int, Floats] = OrderedDict()

    def __len__(self) -> int:
        return len(self._bags)

    def __getitem__(self, index: Any) -> Any:
        if index in self._held:
            self._held.move_to_end(index)
            return self._held[index]
        bag = np.asarray(self._bags[index], dtype=np.float32)
        self._held[index] = bag
        self._bytes += bag.nbytes
        while self._bytes > self._most:
            self._bytes -= self._held.popitem(last=False)[1].nbytes
        return bag


class KeptBags(Sequence[Floats]):
    """Bags that lie in a store, by their names there."""

    def __init__(self, store: FeatureStore, keys: list[str]) -> None:
        self.store, self.keys = store, keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: Any) -> Any:
        found = self.store.get(self.keys[index])
        if found is None:
            raise DataError(f"features {self.keys[index]} are gone from {self.store.folder} while they were in use")
        return found


def bags_of_slides(asked: Asked, slides: SlideFiles) -> KeptBags:
    """Bags of the slides in order, made where the store lacks them. DataError naming a slide without tissue."""
    encoder = asked.encoder
    if encoder is None:
        raise DataError(f"task {asked.task.name}: slides need an encoder; give a model, or features of the slides")
    how = [encoder.model_hash, encoder.transform, slides.mpp, slides.size_px, slides.tiles, MIN_FOREGROUND]
    keys = [hash_of(["bag", *how, file_identity(path)]) for path in slides.paths]
    lacking = [number for number, key in enumerate(keys) if asked.store.get(key) is None]
    grids: dict[int, TileGrid] = {}
    title, done = f"{asked.model}, {asked.task.name}", len(keys) - len(lacking)
    parts = read_grids(_grids(slides, lacking, grids), asked.workers)
    with progress_bar(title, len(keys), "slides", done) as bar:
        for number, own in groupby(parts, lambda part: part.number):
            asked.store.get_or(keys[number], partial(_embed, asked, own, len(grids.pop(number))))
            bar.advance()
    return KeptBags(asked.store, keys)


def _grids(slides: SlideFiles, numbers: Sequence[int], grids: dict[int, TileGrid]) -> Iterator[GridSlide]:
    """The tiles to read of each slide, found when the readers come to it; `grids` receives them."""
    for number in numbers:
        path = slides.paths[number]
        with open_slide(path) as slide:
            size, mpp = (slide.width, slide.height), (slide.mpp_x, slide.mpp_y)
            foreground = find_foreground(slide)
        grid = tissue_grid(foreground, mpp, size, mpp=slides.mpp, size_px=slides.size_px, min_foreground=MIN_FOREGROUND)
        if not len(grid):
            raise DataError(f"slide {path}: no tile of {slides.size_px} px at {slides.mpp:g} µm/px has tissue")
        grids[number] = drawn_tiles(grid, slides.tiles, path)
        yield GridSlide(number, str(path), mpp, size, grids[number])


def drawn_tiles(grid: TileGrid, most: int, path: Path) -> TileGrid:
    """The grid, or `most` tiles of a larger one, drawn by a stream that the slide's file name keys, in their order."""
    if len(grid) <= most:
        return grid
    rows = np.sort(Words(0, "bag of tiles", path.name).permutations(len(grid))[:most])
    return replace(grid, **{name: getattr(grid, name)[rows] for name in ("row", "column", "coords", "share")})


def _embed(asked: Asked, parts: Iterator[GridPart], count: int) -> Floats:
    """Features float32 [count, D] of a slide's tiles, in the order of its grid."""
    assert asked.encoder is not None
    encoder = asked.encoder.to(asked.device)
    features = np.full((count, encoder.dim), np.nan, dtype=np.float32)
    for part in parts:
        if part.error is not None:
            raise part.error
        for first in range(0, len(part.rows), asked.batch):
            with torch.inference_mode():
                found = encoder.embed(part.pixels[first : first + asked.batch])
            features[part.rows[first : first + asked.batch]] = found.float().cpu().numpy()
    if not np.isfinite(features).all():
        raise DataError(f"{encoder.name} gives NaN or infinite features for a tile of a slide of {asked.task.name}")
    return features
