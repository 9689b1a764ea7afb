"""How fast one core reads tiles of a slide as training draws them, and where its time goes. Used by `eosin doctor`.

Foreground tiles at random places, read with cold caches: in training the next tile is almost always of another place or
slide, so a small slide is opened again between tiles. What is counted is CPU time of the reading thread, so a busy
machine or a slow disk does not lower the rate; wall time is told beside it. Decoding is timed apart, on the stored
tiles under the same tiles.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2

from eosin.errors import EosinError, PlanError
from eosin.randomness import Words
from eosin.slides import Cohort, Slide
from eosin.slides.anatomy import Serving, serving
from eosin.tiles.config import TilesConfig
from eosin.tiles.decoding import decode_seconds
from eosin.tiles.filters import hsv_share
from eosin.tiles.slide_source import SlideSource, read_places
from eosin.tiles.source import Address

SEED = 0
MOST_TILES = 512
MOST_ERRORS = 8
LEAST_VISITS = 6
"""Read even if the time is over, but for at most three times as long: a busy machine may give few of its cores."""
_COLD_SHARE = 24  # between two openings at most one in so many of a level's stored tiles is read

OpenAgain = Callable[[], Slide]


@dataclass
class ScaleSpeed:
    """Tiles of one slide at one µm/px, read one by one (`per_visit` 1) or several from each place.

    tiles: read; kept: of them passing the HSV rule; read_s, hsv_s, draw_s: CPU seconds of reading pixels, of the rule,
    of drawing a place with foreground. decode_s: CPU seconds of decoding that are in read_s, None where the reader
    does not let it be told. wall_s: of all. why: why nothing was measured. errors: of reads that failed.
    """

    mpp: float
    per_visit: int = 1
    tiles: int = 0
    kept: int = 0
    read_s: float = 0.0
    hsv_s: float = 0.0
    draw_s: float = 0.0
    wall_s: float = 0.0
    decode_s: float | None = None
    why: str | None = None
    errors: list[str] = field(default_factory=list)

    @property
    def cpu_s(self) -> float:
        """CPU seconds in all."""
        return self.read_s + self.hsv_s + self.draw_s

    @property
    def per_core(self) -> float:
        """Tiles read a second of one core; NaN where none was."""
        return self.tiles / self.cpu_s if self.tiles and self.cpu_s > 0 else math.nan

    @property
    def acceptance(self) -> float:
        """Share of the tiles read that pass the HSV rule; NaN where none was read."""
        return self.kept / self.tiles if self.tiles else math.nan

    @property
    def kept_per_core(self) -> float:
        """Tiles for training a second of one core; 0 where all were rejected."""
        return self.per_core * self.acceptance

    @property
    def decode_share(self) -> float:
        """Share of the CPU time that decoding takes; NaN where it cannot be told."""
        return math.nan if self.decode_s is None or not self.tiles else min(self.decode_s / self.cpu_s, 1.0)


def measure_scale(
    cohort: Cohort, config: TilesConfig, mpp: float, open_again: OpenAgain, seconds: float, per_visit: int = 1
) -> ScaleSpeed:
    """Read tiles of the one slide of `cohort` at `mpp` µm/px for about `seconds` s.

    config: size, foreground, HSV rule, max_upsample. open_again: opens the slide. per_visit: tiles cut from each place
    that is decoded. A slide that cannot give the scale, or fails, is told of in `why`.
    """
    speed = ScaleSpeed(mpp, per_visit)
    alone = config.model_copy(
        update={"mpp": [mpp], "mpp_weights": None, "drop_empty_mpp": False, "slides": 1.0, "tiles_per_visit": per_visit}
    )
    try:
        source = SlideSource(cohort, alone, SEED)
    except PlanError:
        speed.why = _why_not(cohort, alone, mpp)
        return speed
    with _one_thread():
        try:
            visits = _read_for(speed, source, open_again, seconds)
            if visits:
                with open_again() as slide:
                    speed.decode_s = decode_seconds(slide, visits, config.max_upsample, seconds / 4)
        except EosinError as error:
            speed.why = str(error)
    if speed.tiles == 0 and speed.why is None:
        speed.why = speed.errors[0] if speed.errors else "no place with enough foreground"
    return speed


def _why_not(cohort: Cohort, config: TilesConfig, mpp: float) -> str:
    """Why a slide has no tiles at `mpp`, in words."""
    row = cohort.usable.iloc[0]
    if row["tissue_mm2"] <= 0:
        return "no foreground"
    if max(row["mpp_x"], row["mpp_y"]) > mpp * config.max_upsample:
        return f"too coarse for {mpp:g} µm/px"
    return f"too small for a tile of {config.size_px} px"


@contextmanager
def _one_thread() -> Iterator[None]:
    """OpenCV as in a reading process: on one thread."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _read_for(speed: ScaleSpeed, source: SlideSource, open_again: OpenAgain, seconds: float) -> list[list[Address]]:
    """Draw and read until `seconds` are over; the addresses that were read, visit by visit."""
    config, done, index = source.config, list[list[Address]](), 0
    least, slide, left = config.hsv_share, open_again(), 0
    try:
        how = serving(slide, speed.mpp, config.size_px, config.max_upsample)
        pause = max(_tiles_an_opening(slide, how) // speed.per_visit, 1)
        places = _places(source, 0)  # the foreground is loaded and the code warm before anything is timed
        if not places:
            return done
        read_places(slide, places, config.max_upsample)
        begun = time.monotonic()
        while speed.tiles < MOST_TILES and len(speed.errors) < MOST_ERRORS:
            if (over := time.monotonic() - begun) > seconds and (over > 3 * seconds or len(done) >= LEAST_VISITS):
                break
            if left == 0 and slide.reader != "image":  # an image is decoded once and held; so it is in training
                slide.close()
                slide = open_again()
            left = (left or pause) - 1
            index += 1
            wall, before = time.perf_counter(), time.thread_time()
            places = _places(source, index)
            drawn = time.thread_time()
            try:
                tiles = read_places(slide, places, config.max_upsample)
            except EosinError as error:
                speed.errors.append(str(error))
                continue
            read = time.thread_time()
            speed.kept += sum(least is None or hsv_share(tile) >= least for tile in tiles)
            speed.draw_s += drawn - before
            speed.read_s += read - drawn
            speed.hsv_s += time.thread_time() - read
            speed.wall_s += time.perf_counter() - wall
            speed.tiles += len(tiles)
            done.append(places)
    finally:
        slide.close()
    return done


def _places(source: SlideSource, index: int) -> list[Address]:
    """The tiles of visit `index`, one or several; none where the slide has no place for them."""
    place = source.draw(SEED, 0, index, 0)
    if place.size_px == 0:
        return []
    if source.config.tiles_per_visit == 1:
        return [place]
    return source.around(place, Words(SEED, "slots", index))


def _tiles_an_opening(slide: Slide, how: Serving) -> int:
    """After how many tiles the slide is opened anew, so that kept stored tiles hardly ever help."""
    if how.level is None or not how.touched > 0:
        return 8
    level = (*slide.levels, *slide.halved_levels)[how.level]
    tile = slide.tile_size(how.level)
    stored = -(-level.width // tile[0]) * -(-level.height // tile[1])
    return min(max(int(stored / _COLD_SHARE / how.touched), 1), 32)
