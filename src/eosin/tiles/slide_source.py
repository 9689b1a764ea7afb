"""Tiles of a cohort's slides: which slide, where on it (positions.py), and its pixels.

Knows nothing of batches or filters on pixels (plan.py).
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import PlanError, SlideError, SlideGone
from eosin.progress import say
from eosin.provenance import hash_of
from eosin.randomness import Words
from eosin.slides import Cohort, Slide, open_slide
from eosin.slides.records import Records
from eosin.slides.uri import is_uri
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels, integral
from eosin.tiles.open_slides import OpenSlides
from eosin.tiles.positions import Extent, Tissue
from eosin.tiles.source import REDRAWS, Address

KEPT_MASKS = 64  # integral images kept a process


class SlideSource:
    """Tiles of a cohort's usable slides. Cheap to send to a worker process: open slides and masks stay behind.

    Threads may draw and read at the same time.
    """

    wide = True

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
        used = np.flatnonzero(chosen).tolist() if config.slides < 1 else None
        self.hash = hash_of([cohort.hash, self.config.model_dump(), used])
        self.far = any(map(is_uri, table["path"].iloc[self._order]))
        self._rows = Records(table, ["slide_id", "path", "reader", "width", "height", "mpp_x", "mpp_y"])
        self._reset()

    def _reset(self) -> None:
        self._open = OpenSlides()
        self._masks: OrderedDict[int, Tissue] = OrderedDict()
        self._lock = threading.Lock()  # of the masks

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_open", "_masks", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._reset()

    def __len__(self) -> int:
        """Number of slides that tiles are drawn from."""
        return len(self._order)

    @property
    def told(self) -> str:
        """See `Source.told`."""
        tissue = self.cohort.usable["tissue_mm2"].iloc[self._order].sum()
        return f"{len(self)} slides, {tissue:.3g} mm² of tissue (cohort {self.cohort.hash})"

    def check(self) -> None:
        """Raises PlanError where no slide is where it was indexed; says how many are missing."""
        paths = [self._rows[n]["path"] for n in self._order]
        missing = [path for path in paths if not is_uri(path) and not Path(path).exists()]  # a store is asked later
        if not missing:
            return
        line = f"{len(missing)} of {len(self)} slides are not where they were indexed, first {missing[0]}"
        if len(missing) == len(self):
            raise PlanError(f"{self.cohort.path}: {line}; run `eosin index` again")
        say(f"{self.cohort.path}: {line}")

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address:
        """See `Source.draw`."""
        mpp = self.config.draw_mpp(Words(seed, "mpp", index))
        fine_enough = int(np.searchsorted(self._sorted_native, mpp * self.config.max_upsample, side="right"))
        share = float(Words(seed, "slide", index, attempt // REDRAWS).uniform())
        place = int(np.searchsorted(self._edges[:fine_enough], share * self._edges[fine_enough - 1], side="right"))
        image = int(self._order[place])
        extent, words = self._extent(image, mpp), Words(seed, "position", index, attempt)
        position = None
        if min(extent.room_x, extent.room_y) >= 0:
            side_um = self.config.size_px * mpp
            position = self._tissue(image).position(extent, side_um, self.config.min_foreground, words)
        size_px = 0 if position is None else self.config.size_px
        return Address(number, image, self._rows[image]["slide_id"], *(position or (0, 0)), mpp, size_px)

    def _extent(self, image: int, mpp: float) -> Extent:
        row, side_um = self._rows[image], self.config.size_px * mpp
        width, height = side_um / row["mpp_x"], side_um / row["mpp_y"]
        return Extent(int(row["width"] - math.ceil(width)), int(row["height"] - math.ceil(height)), width, height)

    def around(self, address: Address, words: Words) -> list[Address]:
        """See `Source.around`."""
        image, mpp = address.image, address.mpp
        with self._slide(image) as slide:
            stored = slide.stored_tile(mpp, self.config.max_upsample)
        corners = self._tissue(image).around(
            (address.x, address.y),
            self.config.tiles_per_visit,
            stored,
            self._extent(image, mpp),
            self.config.size_px * mpp,
            self.config.min_foreground,
            words,
        )
        return [replace(address, x=x, y=y) for x, y in corners]

    def read(self, addresses: Sequence[Address]) -> list[Pixels]:
        """See `Source.read`."""
        with self._slide(addresses[0].image) as slide:
            return read_places(slide, addresses, self.config.max_upsample)

    def _slide(self, image: int) -> AbstractContextManager[Slide]:
        return self._open.use(image, lambda: self._opened(self._rows[image]))

    def _opened(self, row: dict[str, Any]) -> Slide:
        """Raises SlideGone."""
        mpp = row["mpp_x"] if row["mpp_x"] == row["mpp_y"] else None
        try:
            slide = open_slide(row["path"], mpp, row["reader"], halve=self.config.dct_halving)
        except SlideError as error:
            raise SlideGone(str(error)) from error
        if (slide.width, slide.height) != (row["width"], row["height"]):
            slide.close()
            raise SlideGone(f"{row['path']}: is not the file that was indexed; run `eosin index` again")
        return slide

    def _tissue(self, image: int) -> Tissue:
        with self._lock:
            if image not in self._masks:
                row, table = self._rows[image], integral(self.cohort.foreground(image))
                self._masks[image] = Tissue(table, self.cohort.foreground_mpp(image), row["mpp_x"], row["mpp_y"])
                if len(self._masks) > KEPT_MASKS:
                    self._masks.popitem(last=False)
            self._masks.move_to_end(image)
            return self._masks[image]


def read_places(slide: Slide, places: Sequence[Address], max_upsample: float) -> list[Pixels]:
    """Pixels uint8 [S, S, 3] of neighbouring addresses of one slide and µm/px, from one read. Raises SlideError."""
    first = places[0]
    if len(places) == 1:
        return [slide.region(first.x, first.y, first.size_px, first.mpp, max_upsample)]
    return slide.regions([(place.x, place.y) for place in places], first.size_px, first.mpp, max_upsample)


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
