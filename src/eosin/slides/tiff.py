"""Tiled TIFF slides read directly: compressed tiles from the file, decoded by libjpeg-turbo, cut by us.

A read costs what its tiles cost: their bytes are taken by position (tiff_index.py knows where), decoded once and
kept for a while in a store shared by all slides (tiff_cache.py), and pasted at whole pixels, so no level is ever
interpolated. Where a JPEG pyramid lacks a level of half the size, its tiles are decoded at half size, from the
lower half of their frequencies: for the work of 60 to 75 % of a full decode, about 1 grey level from the mean of
2 x 2 pixels. Tiles without bytes are white. ICC profiles are not applied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from eosin.errors import SlideError, SlideGone
from eosin.slides import tiff_cache
from eosin.slides.reader import Level, Slide, levels_of
from eosin.slides.resample import Pixels
from eosin.slides.tiff_codecs import DecodeError, Decoder
from eosin.slides.tiff_index import TiffIndex, TiffLevel, read_index
from eosin.slides.tiff_source import ByteSource, FileBytes, Span
from eosin.slides.tiff_tags import NotThisReader

__all__ = ["NotThisReader", "TiffSlide"]

_HALF_THERE = 1.6  # a stored level this many times coarser or less takes the place of a halved one
_numbers = itertools.count()


class _Readable:
    """A level as it is read: `stored` whole or with both sides of its tiles halved.

    tile: width and height of a tile in px of this level.
    """

    def __init__(self, stored: TiffLevel, decoder: Decoder, half: bool) -> None:
        self.stored, self.decoder, self.half = stored, decoder, half
        self.tile = (stored.coding.tile_width >> half, stored.coding.tile_height >> half)
        self.most_bytes = stored.coding.most_bytes


class TiffSlide(Slide):
    """A slide whose tiles are read and decoded by eosin itself."""

    reader = "tiff"

    def __init__(
        self,
        path: Path,
        mpp: float | None = None,
        index: bytes | None = None,
        source: ByteSource | None = None,
        halve: bool = True,
    ) -> None:
        """Open `path`.

        Args:
            path: the file, or what error lines call it where `source` is given.
            mpp: stated µm per level-0 px; goes before what the file says.
            index: of an earlier `packed_index`: the file's directories are then not looked at.
            source: where the bytes come from; None for a file at `path`.
            halve: decode tiles at half size where a level is missing.

        Raises:
            NotThisReader: the file is of a kind that another reader has to do.
            SlideGone: it is not the file that `index` was made of.
            SlideError: it cannot be read, or no believable µm/px is known.
        """
        self._source = FileBytes(path) if source is None else source
        try:
            self._index = read_index(self._source) if index is None else TiffIndex.unpack(index)
            if self._index.size != self._source.size:
                raise SlideGone(f"{path}: is not the file that was indexed; run `eosin index` again")
            levels = levels_of([(level.width, level.height) for level in self._index.levels])
            super().__init__(path, self._index.vendor, levels, self._index.mpp if mpp is None else (mpp, mpp))
        except BaseException:
            self._source.close()
            raise
        self._number = next(_numbers)
        self._plans = [_Readable(level, Decoder(level.coding), False) for level in self._index.levels]
        self._half_plans: list[_Readable] = []
        if halve:
            self._add_halves()

    def _add_halves(self) -> None:
        """Levels of half the size of a stored one, where none is stored near it."""
        for level, plan in zip(self.levels, self._plans, strict=True):
            downsample = level.downsample_x * 2
            near = any(1 / _HALF_THERE < other.downsample_x / downsample < _HALF_THERE for other in self.levels)
            if near or not plan.stored.coding.halves or min(level.width, level.height) < 2:
                continue
            half = Level(level.width // 2, level.height // 2, downsample, level.downsample_y * 2)
            self.halved_levels = (*self.halved_levels, half)
            self._half_plans.append(_Readable(plan.stored, plan.decoder, True))

    def _plan(self, level: int) -> _Readable:
        stored = len(self.levels)
        return self._plans[level] if level < stored else self._half_plans[level - stored]

    @property
    def damage(self) -> str | None:
        """What is wrong with the file as a whole, in words; None where nothing is known."""
        beyond = self._index.beyond_the_end
        return f"truncated: {beyond} of its tiles lie past the end of the file" if beyond else None

    def packed_index(self) -> bytes:
        """Where the tiles are, to open the slide again without looking for it; about 2 bytes a tile."""
        return self._index.pack()

    def tile_size(self, level: int) -> tuple[int, int]:
        """See `Slide.tile_size`."""
        return self._plan(level).tile

    def _read(self, level: int, column: int, row: int, width: int, height: int) -> Pixels:
        tile_width, tile_height = self._plan(level).tile
        pixels = np.empty((height, width, 3), np.uint8)
        first, last = column // tile_width, (column + width - 1) // tile_width
        for down in range(row // tile_height, (row + height - 1) // tile_height + 1):
            above = down * tile_height - row
            top, bottom = max(above, 0), min(above + tile_height, height)
            before = first * tile_width - column
            for tile in self._tiles(level, down, first, last):
                left, right = max(before, 0), min(before + tile_width, width)
                if tile is None:
                    pixels[top:bottom, left:right] = 255
                else:
                    pixels[top:bottom, left:right] = tile[top - above : bottom - above, left - before : right - before]
                before += tile_width
        return pixels

    def _tiles(self, level: int, down: int, first: int, last: int) -> Iterator[Pixels | None]:
        """Tiles `first` … `last` of one row; None for one without bytes."""
        plan, number = self._plan(level), self._number
        begin = down * plan.stored.across + first
        end = begin + last - first + 1
        kept = tiff_cache.shared.get([(number, level, tile) for tile in range(begin, end)])
        spans = list(zip(plan.stored.offsets[begin:end].tolist(), plan.stored.counts[begin:end].tolist(), strict=True))
        wanted = [span for tile, span in zip(kept, spans, strict=True) if tile is None and span[1]]
        data = iter(self._bytes(plan, wanted) if wanted else ())
        for place, pixels in enumerate(kept):
            if pixels is None and spans[place][1]:
                pixels = self._decoded(plan, begin + place, next(data))
                tiff_cache.shared.put((number, level, begin + place), pixels)
            yield pixels

    def _bytes(self, plan: _Readable, spans: list[Span]) -> list[bytes]:
        longest = max([count for _, count in spans])
        if longest > plan.most_bytes:
            raise SlideError(f"{self.path}: damaged: a tile of {longest} bytes")
        return self._source.read(spans)

    def _decoded(self, plan: _Readable, number: int, data: bytes) -> Pixels:
        try:
            return plan.decoder.decode(data, plan.half)
        except DecodeError as error:
            down, across = divmod(number, plan.stored.across)
            raise SlideError(
                f"{self.path}: damaged: tile {across}, {down} of {plan.stored.width}x{plan.stored.height} px "
                f"cannot be decoded: {error}"
            ) from error

    def close(self) -> None:
        """Close the file and forget its tiles."""
        self._source.close()
        tiff_cache.shared.drop(self._number)
