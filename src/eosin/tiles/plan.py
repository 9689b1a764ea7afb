"""TilePlan: tile number i is a function of (seed, i) and of what the run pins by hash.

The µm/px is drawn first, then the slide among those fine enough, then a position uniform over those with enough
foreground. A tile that fails the HSV rule or cannot be read is redrawn on the same slide and µm/px up to `REDRAWS`
times, then on another slide. Idea: kaiko's online patching (Aben et al., arXiv 2404.15217). Reads pixels through
`sources`; knows no batches, workers or training.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from eosin.errors import EosinError, PlanError, SlideError
from eosin.provenance import hash_of, versions
from eosin.randomness import Words
from eosin.slides import Cohort, Slide, open_slide
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels, foreground_share, hsv_share, integral

REDRAWS = 16  # positions tried on one slide before another slide is drawn
MOST_SLIDES = 64  # slides tried for one tile before the plan gives up
OPEN_SLIDES = 32  # slides kept open a process
KEPT_MASKS = 64  # integral images kept a process
READ_TRIES = 3  # a transient read error is retried


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

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address | None:
        """Address of attempt `attempt` at tile `index`; None where this image has no position at all."""

    def read(self, address: Address) -> Pixels:
        """Pixels of an address. Raises SlideError."""


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

    @classmethod
    def from_cohort(cls, cohort: Cohort, config: TilesConfig, seed: int) -> TilePlan:
        """The common case: tiles of one cohort."""
        return cls([SlideSource(cohort, config, seed)], seed)

    @property
    def size_px(self) -> int:
        return self.sources[0].config.size_px

    @property
    def hash(self) -> str:
        """Pins what the tiles depend on: sources, filters, weights, seed, and the versions of what decodes pixels."""
        readers = {
            name: version for name, version in versions().items() if name in ("openslide-bin", "opencv-python-headless")
        }
        return hash_of([[s.hash for s in self.sources], self.weights, self.seed, REDRAWS, MOST_SLIDES, readers])

    def tile(self, index: int, known_errors: Collection[tuple[int, int]] = ()) -> Tile:
        """Tile `index` ≥ 0.

        known_errors: (index, attempt) pairs of the run's ledger; they count as failed without being read again, so
        that a repaired file does not change a tile on resume. Raises PlanError where nothing passes the filters.
        """
        distinct = self.sources[0].config.distinct_tiles
        index = index % distinct if distinct else index
        number = Words(self.seed, "source", index).choice(self.weights)
        source = self.sources[number]
        rejected: list[str] = []
        errors: list[dict[str, Any]] = []
        attempt = 0
        while attempt < REDRAWS * MOST_SLIDES:
            address = source.draw(self.seed, number, index, attempt)
            if address is None:
                rejected.append("")
                attempt = (attempt // REDRAWS + 1) * REDRAWS
                continue
            if (index, attempt) not in known_errors:
                try:
                    pixels = _read_with_retries(source, address)
                except EosinError as error:
                    errors.append({"i": index, "attempt": attempt, "slide": address.name, "error": str(error)})
                else:
                    wanted = source.config.hsv_share
                    if wanted is None or hsv_share(pixels) >= wanted:
                        return Tile(index, pixels, address, rejected, errors)
            rejected.append(address.name)
            attempt += 1
        raise PlanError(_nothing_passes(source, rejected, errors))


def _nothing_passes(source: Source, rejected: list[str], errors: list[dict[str, Any]]) -> str:
    empty, failed = rejected.count(""), len(errors)
    config = source.config
    reason = f"{empty} slides had no place with {config.min_foreground:.0%} foreground"
    reason += (
        f", {len(rejected) - empty - failed} tiles failed the HSV rule ({config.hsv_share}), {failed} could not be read"
    )
    last = f" (last error: {errors[-1]['error']})" if errors else ""
    return f"no tile passes after {len(rejected)} tries: {reason}{last}; loosen tiles.min_foreground or tiles.hsv_share"


def _read_with_retries(source: Source, address: Address) -> Pixels:
    for number in range(READ_TRIES):
        try:
            return source.read(address)
        except SlideError:
            if number == READ_TRIES - 1:
                raise
            time.sleep(0.01 * 4**number)
    raise AssertionError("unreachable")


class SlideSource:
    """Tiles of a cohort's usable slides. Cheap to send to a worker process: open slides and masks stay behind."""

    def __init__(self, cohort: Cohort, config: TilesConfig, seed: int) -> None:
        """Raises PlanError where no slide has foreground, or a wanted µm/px is offered by none."""
        self.cohort = cohort
        table = cohort.usable
        self._native = np.maximum(table["mpp_x"].to_numpy(float), table["mpp_y"].to_numpy(float))
        tissue = table["tissue_mm2"].to_numpy(float)
        chosen = (tissue > 0) & chosen_patients(table, config.slides, seed)
        if not chosen.any():
            raise PlanError(
                f"{cohort.path}: none of {len(table)} usable slides has foreground; see `eosin index --html`"
            )
        order = np.argsort(self._native, kind="stable")
        self._order = order[chosen[order]]  # usable row numbers, finest first
        weight = tissue if config.slide_weights == "tissue" else np.ones(len(tissue))
        self._edges = np.cumsum(weight[self._order])
        self._sorted_native = self._native[self._order]
        sides = np.minimum(table["width"] * table["mpp_x"], table["height"] * table["mpp_y"]).to_numpy(float)
        try:
            self.config = config.offered_by(float(self._sorted_native[0]), float(sides[self._order].max()))
        except ValueError as error:
            raise PlanError(
                f"{cohort.path}: {error} (finest slide: {self._sorted_native[0]:g} µm/px); "
                "change tiles.mpp, or set tiles.drop_empty_mpp=true"
            ) from error
        self.hash = hash_of([cohort.hash, self.config.model_dump(), seed if config.slides < 1 else None])
        self._rows = table[["slide_id", "path", "width", "height", "mpp_x", "mpp_y"]].to_dict("records")
        self._reset()

    def _reset(self) -> None:
        self._open: OrderedDict[int, Slide] = OrderedDict()
        self._masks: OrderedDict[int, _Mask] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_masks")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __len__(self) -> int:
        """Number of slides that tiles are drawn from."""
        return len(self._order)

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address | None:
        """See `Source.draw`."""
        mpp = self.config.draw_mpp(Words(seed, "mpp", index))
        fine_enough = int(np.searchsorted(self._sorted_native, mpp * self.config.max_upsample, side="right"))
        share = float(Words(seed, "slide", index, attempt // REDRAWS).uniform())
        place = int(np.searchsorted(self._edges[:fine_enough], share * self._edges[fine_enough - 1], side="right"))
        image = int(self._order[place])
        position = self._position(image, mpp, Words(seed, "position", index, attempt))
        if position is None:
            return None
        row = self._rows[image]
        return Address(number, image, row["slide_id"], *position, mpp, self.config.size_px)

    def _position(self, image: int, mpp: float, words: Words) -> tuple[int, int] | None:
        """Level-0 corner, uniform over whole pixels whose tile has enough foreground; None where there are none."""
        row = self._rows[image]
        side_um = self.config.size_px * mpp
        room_x = int(row["width"] - math.ceil(side_um / row["mpp_x"]))
        room_y = int(row["height"] - math.ceil(side_um / row["mpp_y"]))
        if room_x < 0 or room_y < 0:
            return None
        mask = self._mask(image)
        scale_x, scale_y = row["mpp_x"] / mask.mpp, row["mpp_y"] / mask.mpp
        side = side_um / mask.mpp
        for _ in range(4):  # rejection keeps the law exact and needs no table of positions
            x = words.integers(room_x + 1, 64)
            y = words.integers(room_y + 1, 64)
            good = foreground_share(mask.table, x * scale_x, y * scale_y, side, side) >= self.config.min_foreground
            if good.any():
                first = int(good.argmax())
                return int(x[first]), int(y[first])
        return mask.listed_position(side, scale_x, scale_y, room_x, room_y, self.config.min_foreground, words)

    def read(self, address: Address) -> Pixels:
        """See `Source.read`."""
        slide = self._slide(address.image)
        return slide.region(address.x, address.y, address.size_px, address.mpp, self.config.max_upsample)

    def _slide(self, image: int) -> Slide:
        if image in self._open:
            self._open.move_to_end(image)
            return self._open[image]
        row = self._rows[image]
        slide = open_slide(row["path"], mpp=row["mpp_x"] if row["mpp_x"] == row["mpp_y"] else None)
        if (slide.width, slide.height) != (row["width"], row["height"]):
            slide.close()
            raise SlideError(f"{row['path']}: is not the file that was indexed; run `eosin index` again")
        self._open[image] = slide
        if len(self._open) > OPEN_SLIDES:
            self._open.popitem(last=False)[1].close()
        return slide

    def _mask(self, image: int) -> _Mask:
        if image in self._masks:
            self._masks.move_to_end(image)
            return self._masks[image]
        mask = _Mask(integral(self.cohort.foreground(image)), self.cohort.foreground_mpp(image))
        self._masks[image] = mask
        if len(self._masks) > KEPT_MASKS:
            self._masks.popitem(last=False)
        return mask


@dataclass(frozen=True)
class _Mask:
    """Integral image of a slide's foreground and its scale in µm per mask pixel."""

    table: npt.NDArray[np.float64]
    mpp: float

    def listed_position(
        self,
        side: float,
        scale_x: float,
        scale_y: float,
        room_x: int,
        room_y: int,
        least: float,
        words: Words,
    ) -> tuple[int, int] | None:
        """For slides with little tissue: list the corners on the mask's own grid that pass and draw one of them."""
        x = np.minimum((np.arange(self.table.shape[1] - 1) / scale_x).astype(np.int64), room_x)
        y = np.minimum((np.arange(self.table.shape[0] - 1) / scale_y).astype(np.int64), room_y)
        x, y = np.unique(x), np.unique(y)
        shares = foreground_share(self.table, (x * scale_x)[None, :], (y * scale_y)[:, None], side, side)
        rows, columns = np.nonzero(shares >= least)
        if len(rows) == 0:
            return None
        pick = int(words.integers(len(rows), 1)[0])
        return int(x[columns[pick]]), int(y[rows[pick]])


def chosen_patients(table: Any, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Rows of the first `share` of patients (slides where there is no patient) in an order fixed by `seed`.

    Nested: the rows of a smaller share are among those of a larger one. table: usable rows of a cohort. bool [n].
    """
    if share >= 1.0:
        return np.ones(len(table), dtype=bool)
    patients = (
        table["patient"].where(table["patient"].notna() & (table["patient"] != ""), table["slide_id"]).astype(str)
    )
    ranked = sorted(patients.unique(), key=lambda name: hash_of([seed, name]))
    kept = set(ranked[: max(1, round(share * len(ranked)))])
    return patients.isin(kept).to_numpy(bool)
