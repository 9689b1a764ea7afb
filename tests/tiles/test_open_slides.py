"""Slides that stay open: a few, the last used ones, never closed while a thread reads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from eosin.errors import SlideError, SlideGone
from eosin.slides import Cohort, Slide, open_slide
from eosin.tiles import SlideSource, TilePlan, TilesConfig
from eosin.tiles import open_slides as module
from eosin.tiles.open_slides import OpenSlides


def test_the_oldest_is_closed_unless_it_is_read(slide_paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SLIDES", 2)
    slides, opened = OpenSlides(), list[int]()

    def use(number: int) -> Slide:
        def open_it() -> Slide:
            opened.append(number)
            return open_slide(slide_paths[number], reader="tiff")

        return stack.enter_context(slides.use(number, open_it))

    with ExitStack() as stack:
        held = [use(0), use(1), use(2)]
        for slide in held:  # more than the limit, but all in use
            slide.region(0, 0, 16, 0.5)
    with pytest.raises(SlideError):  # the first that nobody read any more
        held[2].region(0, 0, 16, 0.5)
    for number in (1, 0, 2):  # 1 is now the oldest
        with ExitStack() as stack:
            use(number).region(0, 0, 16, 0.5)
    assert opened == [0, 1, 2, 2]
    with pytest.raises(SlideError):
        held[1].region(0, 0, 16, 0.5)
    with ExitStack() as stack:
        assert use(0) is held[0]


def test_a_slide_that_cannot_be_opened_is_tried_again(slide_paths: list[Path]) -> None:
    slides = OpenSlides()

    def fails() -> Slide:
        raise SlideGone("no such file")

    with pytest.raises(SlideGone), slides.use(0, fails):
        pass
    with slides.use(0, lambda: open_slide(slide_paths[0])) as slide:
        assert slide.width == 1024


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_threads_get_the_tiles_of_one(cohort: Cohort, reader: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_SLIDES", 1)  # slides come and go all the time
    config = TilesConfig(size_px=48, mpp=[0.5, 1.0], tiles_per_visit=2)
    plan, twin = (TilePlan([SlideSource(cohort, config, 0)], 0, batch=8) for _ in range(2))
    for source in (*plan.sources, *twin.sources):
        source._rows = [{**row, "reader": reader} for row in source._rows]  # type: ignore[attr-defined]
    wanted = [twin.tile(number) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for tile, found in zip(wanted, threads.map(plan.tile, range(40)), strict=True):
            assert found.address == tile.address
            assert np.array_equal(found.pixels, tile.pixels)
