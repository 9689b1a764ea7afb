"""Tiled TIFF slides read directly: compressed tiles from the file, decoded by libjpeg-turbo, cut by us.

A read costs what its tiles cost: their bytes are taken by position (tiff_index.py knows where), decoded once and
kept for a while in a store shared by all slides (tiff_cache.py), and pasted at whole pixels, so no level is ever
interpolated. Of JPEG tiles at the lower edge of a region only the rows that show are decoded, which saves a fifth of
the work of a random 256-px tile; damage in them is then told of only where the decoder cannot go on, so who wants to
know reads with `whole_tiles`. Where a JPEG pyramid lacks a level of half the size, its tiles are decoded at half size,
from the lower half of their frequencies: for the work of 60 to 75 % of a full decode, about 1 grey level from the mean
of 2 x 2 pixels. Tiles without bytes are white. ICC profiles are not applied.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from eosin.errors import SlideError, SlideGone
from eosin.slides import tiff_cache
from eosin.slides.reader import Level, Slide, levels_of
from eosin.slides.resample import Axis, Pixels
from eosin.slides.tiff_codecs import DecodeError, Decoder
from eosin.slides.tiff_index import TiffIndex, TiffLevel, read_index
from eosin.slides.tiff_source import ByteSource, FileBytes, Span
from eosin.slides.tiff_tags import NotThisReader

__all__ = ["NotThisReader", "TiffSlide"]

_HALF_THERE = 1.6  # a stored level this many times coarser or less takes the place of a halved one
_TOGETHER = 64  # tiles whose bytes are asked for at once
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

    def expect(
        self, corners: Sequence[tuple[float, float]], size_px: int, mpp: float, max_upsample: float = 1.0
    ) -> None:
        """See `Slide.expect`."""
        if not self._source.far:
            return
        number = self.level_for(mpp, max_upsample)
        level, plan = self._readable[number], self._plan(number)
        scale_x, scale_y = mpp / (self.mpp_x * level.downsample_x), mpp / (self.mpp_y * level.downsample_y)
        tiles: set[int] = set()
        for x, y in corners:
            across = _touched(Axis.of(x / level.downsample_x, scale_x, size_px), level.width, plan.tile[0])
            down = _touched(Axis.of(y / level.downsample_y, scale_y, size_px), level.height, plan.tile[1])
            tiles |= {row * plan.stored.across + column for row in down for column in across}
        numbers = sorted(tile for tile in tiles if 0 < plan.stored.counts[tile] <= plan.most_bytes)
        kept = tiff_cache.shared.get([(self._number, number, tile) for tile in numbers])
        self._source.prefetch([_span(plan, tile) for tile, there in zip(numbers, kept, strict=True) if there is None])

    def _read(self, level: int, column: int, row: int, width: int, height: int, whole_tiles: bool = False) -> Pixels:
        tile_width, tile_height = self._plan(level).tile
        pixels = np.empty((height, width, 3), np.uint8)
        columns = range(column // tile_width, (column + width - 1) // tile_width + 1)
        rows = range(row // tile_height, (row + height - 1) // tile_height + 1)
        end = rows.stop * tile_height if whole_tiles else row + height
        together = max(_TOGETHER // len(columns), 1)
        for start in range(0, len(rows), together):
            part = rows[start : start + together]
            places = itertools.product(part, columns)
            for (down, across), tile in zip(places, self._tiles(level, part, columns, end), strict=True):
                above, before = down * tile_height - row, across * tile_width - column
                top, bottom = max(above, 0), min(above + tile_height, height)
                left, right = max(before, 0), min(before + tile_width, width)
                if tile is None:
                    pixels[top:bottom, left:right] = 255
                else:
                    pixels[top:bottom, left:right] = tile[top - above : bottom - above, left - before : right - before]
        return pixels

    def _tiles(self, level: int, rows: range, columns: range, end: int) -> Iterator[Pixels | None]:
        """Tiles row by row, down to the level's pixel row `end`; None for one without bytes."""
        plan, number = self._plan(level), self._number
        stored, height = plan.stored, plan.tile[1]
        numbers = [down * stored.across + across for down in rows for across in columns]
        kept = tiff_cache.shared.get([(number, level, tile) for tile in numbers])
        wanted = [tile for tile, pixels in zip(numbers, kept, strict=True) if pixels is None and stored.counts[tile]]
        data = iter(self._bytes(plan, wanted) if wanted else ())
        for tile, pixels in zip(numbers, kept, strict=True):
            if pixels is None and stored.counts[tile]:
                visible = end - tile // stored.across * height
                pixels = self._decoded(plan, tile, next(data), visible)
                if len(pixels) == height:
                    tiff_cache.shared.put((number, level, tile), pixels)
            yield pixels

    def _bytes(self, plan: _Readable, tiles: list[int]) -> list[bytes]:
        spans = [_span(plan, tile) for tile in tiles]
        longest = max([count for _, count in spans])
        if longest > plan.most_bytes:
            raise SlideError(f"{self.path}: damaged: a tile of {longest} bytes")
        return self._source.read(spans)

    def _decoded(self, plan: _Readable, number: int, data: bytes, rows: int) -> Pixels:
        try:
            return plan.decoder.decode(data, plan.half, rows)
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


def _span(plan: _Readable, tile: int) -> Span:
    return int(plan.stored.offsets[tile]), int(plan.stored.counts[tile])


def _touched(axis: Axis, size: int, tile: int) -> range:
    """Numbers of the tiles along an axis of `size` px that a box touches."""
    first, last = max(axis.first, 0), min(axis.first + axis.length, size) - 1
    return range(first // tile, last // tile + 1) if first <= last else range(0)
