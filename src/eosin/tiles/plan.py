"""TilePlan: tile number i is a function of (seed, i) and of what the run pins by hash.

The µm/px is drawn first, then the slide among those fine enough, then a position uniform over those with enough
foreground. A tile that fails the HSV rule or cannot be read is redrawn on the same slide and µm/px up to `REDRAWS`
times, then on another slide; a slide that cannot be opened is left at once. Idea: kaiko's online patching (Aben et
al., arXiv 2404.15217). Reads pixels through `sources`; knows no batches, workers or training.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from eosin.errors import EosinError, PlanError, RegionError, SlideError, SlideGone
from eosin.provenance import hash_of, versions
from eosin.randomness import Words
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels, hsv_share

REDRAWS = 16  # positions tried on one slide before another slide is drawn
MOST_SLIDES = 64  # slides tried for one tile before the plan gives up
READ_TRIES = 3  # a transient read error is retried
DECODERS = ("openslide-bin", "opencv-python-headless", "simplejpeg", "Pillow", "tifffile", "imagecodecs")


@dataclass(frozen=True)
class Address:
    """Where a tile lies: image number in its source, top-left corner in level-0 px, scale, side."""

    source: int
    image: int
    name: str
    x: int
    y: int
    mpp: float
    size_px: int

    @property
    def number(self) -> int:
        """A 63-bit number that is equal for equal addresses and different otherwise."""
        text = f"{self.source}/{self.image}/{self.x}/{self.y}/{self.mpp!r}/{self.size_px}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Tile:
    """Pixels uint8 [S, S, 3] of tile `index`, where they come from, and what failed on the way."""

    index: int
    pixels: Pixels
    address: Address
    rejected: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


class Source(Protocol):
    """Something tiles can be drawn from: slides of a cohort, a folder of images."""

    config: TilesConfig
    hash: str

    @property
    def told(self) -> str:
        """What it is, in a line for people."""

    def check(self) -> None:
        """Raises PlanError where its files are not where they were."""

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address:
        """Address of attempt `attempt` at tile `index`; `size_px` 0 where this image has no position at all."""

    def read(self, address: Address) -> Pixels:
        """Pixels of an address. Raises SlideError, SlideGone where the whole image cannot be opened."""


class TilePlan:
    """Tiles from one or several weighted sources.

    >>> plan = TilePlan([source], seed=0)          # doctest: +SKIP
    >>> plan.tile(12).pixels.shape                 # doctest: +SKIP
    (256, 256, 3)
    """

    def __init__(self, sources: Sequence[Source], seed: int, weights: Sequence[float] | None = None) -> None:
        if not sources:
            raise PlanError("a tile plan needs at least one cohort or folder of tiles")
        self.sources = list(sources)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.sources)
        self.seed = seed
        if len(self.weights) != len(self.sources) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise PlanError("source weights need one non-negative number a source, with a sum above 0")

    def check(self) -> None:
        """Prove that a tile can be had, before long work. Raises PlanError or SlideError, one line."""
        for source in self.sources:
            source.check()
        self.tile(0)

    @property
    def size_px(self) -> int:
        return self.sources[0].config.size_px

    @property
    def hash(self) -> str:
        """Pins what the tiles depend on: sources, filters, weights, seed, and the versions of what decodes pixels."""
        readers = {name: version for name, version in versions().items() if name in DECODERS}
        return hash_of([[s.hash for s in self.sources], self.weights, self.seed, REDRAWS, MOST_SLIDES, readers])

    def tile(self, index: int, known_errors: Mapping[tuple[int, int], int] | None = None) -> Tile:
        """Tile `index` ≥ 0.

        known_errors: the run's ledger, (index, attempt) → the attempt that came next. They count as failed without
        being read again, so that a repaired file does not change a tile on resume. Raises PlanError where nothing
        passes the filters.
        """
        known_errors = known_errors or {}
        distinct = self.sources[0].config.distinct_tiles
        index = index % distinct if distinct else index
        number = Words(self.seed, "source", index).choice(self.weights)
        source = self.sources[number]
        failed = _Failures()
        attempt = 0
        while attempt < REDRAWS * MOST_SLIDES:
            next_slide = (attempt // REDRAWS + 1) * REDRAWS
            if (index, attempt) in known_errors:
                failed.unreadable += 1
                attempt = known_errors[index, attempt]
                continue
            address = source.draw(self.seed, number, index, attempt)
            if address.size_px == 0:
                failed.no_place += 1
                failed.names.append(address.name)
                attempt = next_slide
                continue
            try:
                pixels = _read_with_retries(source, address)
            except EosinError as error:
                following = next_slide if isinstance(error, SlideGone) else attempt + 1
                failed.add(index, attempt, following, address.name, str(error))
                attempt = following
                continue
            if source.config.hsv_share is None or hsv_share(pixels) >= source.config.hsv_share:
                return Tile(index, pixels, address, failed.names, failed.errors)
            failed.hsv += 1
            failed.names.append(address.name)
            attempt += 1
        raise PlanError(failed.told(source.config))


@dataclass
class _Failures:
    """What failed on the way to one tile."""

    no_place: int = 0
    hsv: int = 0
    unreadable: int = 0
    names: list[str] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, index: int, attempt: int, following: int, name: str, error: str) -> None:
        """A read error that stayed, as the ledger keeps it."""
        self.unreadable += 1
        self.names.append(name)
        self.errors.append({"i": index, "attempt": attempt, "next": following, "slide": name, "error": error})

    def told(self, config: TilesConfig) -> str:
        """The line for a plan that finds nothing."""
        line = (
            f"no tile passes after {self.no_place + self.hsv + self.unreadable} tries: {self.no_place} times no place "
        )
        line += f"with {config.min_foreground:.0%} foreground, {self.hsv} times the HSV rule ({config.hsv_share}), "
        line += f"{self.unreadable} times a read error"
        if self.unreadable > self.no_place + self.hsv:
            last = f" ({self.errors[-1]['error']})" if self.errors else ""
            return f"{line}{last}; if slides have moved, run `eosin index` again"
        return f"{line}; loosen tiles.min_foreground or tiles.hsv_share"


def _read_with_retries(source: Source, address: Address) -> Pixels:
    for number in range(READ_TRIES):
        try:
            return source.read(address)
        except RegionError:
            raise
        except SlideError:
            if number == READ_TRIES - 1:
                raise
            time.sleep(0.01 * 4**number)
    raise AssertionError("unreachable")
