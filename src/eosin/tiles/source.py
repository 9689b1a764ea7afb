"""What a tile is, and what tiles can be drawn from: slides of a cohort (slide_source.py), images (folder_source.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from eosin.randomness import Words
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels

REDRAWS = 16  # positions tried on one slide before another slide is drawn


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
    def nowhere(self) -> bool:
        """Whether the image has no such tile at all."""
        return self.size_px == 0

    @property
    def number(self) -> int:
        """A 63-bit number that is equal for equal addresses and different otherwise."""
        text = f"{self.source}/{self.image}/{self.x}/{self.y}/{self.mpp!r}/{self.size_px}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Rejection(NamedTuple):
    """A try that gave no tile: on which slide or image, at which µm/px, and why ("place", "hsv" or "read")."""

    name: str
    mpp: float
    why: str


@dataclass(frozen=True)
class Tile:
    """Pixels uint8 [S, S, 3] of tile `index`, where they come from, and what failed on the way."""

    index: int
    pixels: Pixels
    address: Address
    rejected: list[Rejection] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


class Source(Protocol):
    """Something tiles can be drawn from: slides of a cohort, a folder of images.

    wide: its images are much larger than a tile, so that several tiles of one place make sense. far: some lie in an
    object store, where reading is mostly waiting; threads may use such a source together.
    """

    config: TilesConfig
    hash: str
    wide: bool
    far: bool

    @property
    def told(self) -> str:
        """What it is, in a line for people."""

    def check(self) -> None:
        """Raises PlanError where its files are not where they were."""

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address:
        """Address of attempt `attempt` at tile `index`; `size_px` 0 where this image has no position at all."""

    def around(self, address: Address, words: Words) -> list[Address]:
        """The slots of a visit to a drawn place, `tiles_per_visit` of them. Raises SlideError as `read`."""

    def read(self, addresses: Sequence[Address]) -> list[Pixels]:
        """Pixels of neighbouring addresses of one image and µm/px.

        Raises SlideError where one cannot be read, SlideGone where the whole image cannot be opened.
        """
