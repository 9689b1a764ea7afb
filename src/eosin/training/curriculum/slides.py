"""The slides of a curriculum run: their grids of tiles and regions, read when asked for; which slides a step takes.

Everything drawn here is a function of the seed and the step. Learns nothing and knows no network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from eosin.errors import CohortError, PlanError
from eosin.models.pyramid_pixels import Pixels
from eosin.progress import say
from eosin.randomness import Words
from eosin.slides import Cohort, Foreground, Slide, open_slide
from eosin.tiles.grid import TileGrid, tissue_grid
from eosin.tiles.grid_stream import MAX_UPSAMPLE
from eosin.tiles.pyramid_grid import RegionGrid, region_grid
from eosin.training.curriculum.config import PyramidValues
from eosin.training.curriculum.targets import SlideLabels, patients_of
from eosin.training.whole_slide import SlideSample
from eosin.training.whole_slide.sample import slide_reader

KEPT_GRIDS = 256
"""Grids kept a process; one of 50,000 tiles takes 2 MB."""
DRAWS = 64
"""Times that a draw is tried again before what is left is taken in order."""


class CurriculumSlides:
    """Usable slides of some cohorts, numbered through. `names` are unique; they key the slides' randomness."""

    def __init__(self, cohorts: Sequence[Cohort], settings: PyramidValues) -> None:
        self.cohorts, self.settings = list(cohorts), settings
        self.table: pd.DataFrame = pd.concat([cohort.usable for cohort in cohorts], ignore_index=True)
        self._places = [(part, row) for part, cohort in enumerate(cohorts) for row in range(len(cohort))]
        ids = [str(name) for name in self.table["slide_id"]]
        twice = {name for name, times in Counter(ids).items() if times > 1}
        self.names = [
            f"{part + 1}/{name}" if name in twice else name for (part, _), name in zip(self._places, ids, strict=True)
        ]
        self.patients = patients_of(self.table)
        self.grid = lru_cache(KEPT_GRIDS)(self._grid)
        self.regions = lru_cache(KEPT_GRIDS)(self._regions)

    def __len__(self) -> int:
        return len(self.names)

    def row(self, slide: int) -> dict[str, Any]:
        """The cohort's row of a slide."""
        return dict(self.table.iloc[slide])

    def _grid(self, slide: int) -> TileGrid:
        """All tissue tiles of a slide; none at all where it has no tissue or is too coarse."""
        part, number = self._places[slide]
        cohort, row, wanted = self.cohorts[part], self.row(slide), self.settings
        mpp = (float(row["mpp_x"]), float(row["mpp_y"]))
        foreground = Foreground(cohort.foreground(number), cohort.foreground_mpp(number))
        if max(mpp) > wanted.mpp * MAX_UPSAMPLE:
            foreground = Foreground(np.zeros_like(foreground.mask), foreground.mpp)
        return tissue_grid(
            foreground,
            mpp,
            (int(row["width"]), int(row["height"])),
            mpp=wanted.mpp,
            size_px=wanted.size_px,
            min_foreground=wanted.min_foreground,
        )

    def _regions(self, slide: int, side: int) -> RegionGrid | None:
        """The grid of a slide's regions of side × side tiles; None without a tile."""
        grid = self.grid(slide)
        return region_grid(grid.row, grid.column, side) if len(grid) else None

    def with_tiles(self, slides: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Those of `slides` that have a tile to learn from; says how many have none.

        Raises CohortError where none has.
        """
        numbers = np.asarray(slides, dtype=np.int64)
        has = np.array([len(self.grid(int(number))) > 0 for number in numbers], dtype=bool)
        if missing := [self.names[number] for number in numbers[~has]]:
            least = f"no tile of {self.settings.size_px} px at {self.settings.mpp:g} µm/px with tissue"
            if not has.any():
                raise CohortError(f"{self.cohorts[0].path}: {least} on any slide that has a label, first {missing[0]}")
            say(f"{len(missing)} labelled slides are left out, {least}: {', '.join(missing[:5])}")
        return numbers[has]

    @contextmanager
    def sample(self, slide: int, side: int, targets: Mapping[str, Tensor] | None = None) -> Iterator[SlideSample]:
        """The sample of one slide; the file is opened at the first read and closed at the end of the block."""
        regions, grid = self.regions(slide, side), self.grid(slide)
        if regions is None:
            raise PlanError(f"slide {self.names[slide]} has no tile")
        opened, lock = list[Slide](), Lock()

        def read(region: int) -> Pixels:
            with lock:
                if not opened:
                    opened.append(self.open(slide))
            return slide_reader(opened[0], grid, regions)(region)

        try:
            yield SlideSample(self.names[slide], regions, read, dict(targets or {}))
        finally:
            for one in opened:
                one.close()

    def open(self, slide: int) -> Slide:
        """The slide's file. Raises SlideError, and CohortError where it is another one than was indexed."""
        row = self.row(slide)
        square = row["mpp_x"] == row["mpp_y"]
        opened = open_slide(row["path"], float(row["mpp_x"]) if square else None, row["reader"])
        if (opened.width, opened.height) != (row["width"], row["height"]):
            opened.close()
            raise CohortError(f"{row['path']}: is not the file that was indexed; run `eosin index` again")
        return opened


class SlideOrder:
    """Which slides each optimiser step of step 2 takes: `numbers` are those with labels and tiles."""

    def __init__(
        self, numbers: npt.NDArray[np.int64], labels: SlideLabels, a_step: int, passes: float, sampling: str, seed: int
    ) -> None:
        """labels: of all slides, so that `numbers` are rows of them. a_step: slides of a step."""
        self.numbers, self.seed, self.sampling = numbers, seed, sampling
        self.a_step = min(a_step, len(numbers))
        self.a_pass = -(-len(numbers) // self.a_step)
        self.steps = int(np.ceil(passes * self.a_pass))
        chosen = labels.take(numbers)
        self._members = [
            [np.flatnonzero(strata == stratum) for stratum in np.unique(strata[strata >= 0])]
            for strata in (chosen.strata(task) for task in labels.tasks)
        ]
        self._members = [strata for strata in self._members if strata]

    @property
    def visits(self) -> int:
        """Slides of all steps together."""
        turns, rest = divmod(self.steps, self.a_pass)
        if self.sampling == "passes":
            return turns * len(self.numbers) + min(rest * self.a_step, len(self.numbers))
        return self.steps * self.a_step

    def of_step(self, step: int) -> list[int]:
        """Slides of step `step` of step 2, each once."""
        if self.sampling == "passes":
            turn, place = divmod(step, self.a_pass)
            order = Words(self.seed, "slides of a pass", turn).permutations(len(self.numbers))
            return [int(slide) for slide in self.numbers[order[place * self.a_step : (place + 1) * self.a_step]]]
        words, taken = Words(self.seed, "slides of a step", step), dict[int, None]()
        for _ in range(DRAWS * self.a_step):
            strata = self._members[int(words.integers(len(self._members), 1)[0])]
            members = strata[int(words.integers(len(strata), 1)[0])]
            taken[int(members[int(words.integers(len(members), 1)[0])])] = None
            if len(taken) == self.a_step:
                break
        rest = (int(place) for place in words.permutations(len(self.numbers)))
        for place in rest:
            if len(taken) == self.a_step:
                break
            taken[place] = None
        return [int(self.numbers[place]) for place in taken]


def draw_small_regions(
    slides: CurriculumSlides, side: int, count: int, least: int, words: Words
) -> dict[int, set[int]]:
    """Regions of step 1: a slide with equal chance, then one of its regions with at least `least` tiles.

    Slide -> regions, `count` in all, or fewer where that many different ones are not found.
    """
    found: dict[int, set[int]] = {}
    drawn = 0
    for _ in range(DRAWS * max(count, 1)):
        if drawn == count:
            break
        slide = int(words.integers(len(slides), 1)[0])
        share = float(words.uniform())
        grid = slides.regions(slide, side)
        fit = np.flatnonzero(grid.counts >= least) if grid is not None else np.empty(0, np.int64)
        if not len(fit):
            continue
        region = int(fit[int(share * len(fit))])
        taken = found.setdefault(slide, set())
        drawn += region not in taken
        taken.add(region)
    return found


def draw_regions(
    slides: CurriculumSlides, chosen: Sequence[int], side: int, count: int, least: int, words: Words
) -> dict[int, set[int]]:
    """Regions of step 2: `count` of all that the chosen slides have with at least `least` tiles, each alike."""
    every: list[tuple[int, int]] = []
    for slide in chosen:
        grid = slides.regions(slide, side)
        assert grid is not None
        every += [(slide, int(region)) for region in np.flatnonzero(grid.counts >= least)]
    found: dict[int, set[int]] = {}
    for place in words.permutations(len(every))[:count]:
        slide, region = every[int(place)]
        found.setdefault(slide, set()).add(region)
    return found
