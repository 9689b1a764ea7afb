"""How much of reading tiles is decoding: the stored tiles under them, decoded once more and timed alone."""

from __future__ import annotations

import math
import time
from itertools import product
from typing import NamedTuple

from eosin.errors import EosinError
from eosin.slides import Slide
from eosin.slides.anatomy import serving
from eosin.slides.tiff import TiffSlide
from eosin.slides.tiff_codecs import DecodeError, Decoder
from eosin.slides.tiff_index import TiffIndex
from eosin.slides.tiff_source import FileBytes
from eosin.tiles.source import Address

DECODED_AT_MOST = 64


class StoredTile(NamedTuple):
    """A stored tile: its number in the level, and how many of its upper rows a read shows."""

    number: int
    rows: int


def decode_seconds(slide: Slide, visits: list[list[Address]], max_upsample: float, seconds: float) -> float | None:
    """CPU seconds of decoding all that `visits` read: the mean of some stored tiles, times how many were read.

    visits: places of one µm/px, each list read at once. seconds: stop timing after so many. None where it cannot be
    told: OpenSlide and plain images decode inside, and a file in an object store is not fetched again.
    """
    first = visits[0][0]
    if not isinstance(slide, TiffSlide) or not slide.path.is_file():
        return None
    how = serving(slide, first.mpp, first.size_px, max_upsample)
    if how.level is None:
        return None
    wanted = [tile for places in visits for tile in stored_under(slide, how.level, places)]
    stored = TiffIndex.unpack(slide.packed_index()).levels[_stored_level(slide, how.level)]
    wanted = [tile for tile in wanted if stored.counts[tile.number]]
    decoder, spent, count = Decoder(stored.coding), 0.0, 0
    source = FileBytes(slide.path)
    try:
        for tile in wanted[:: max(len(wanted) // DECODED_AT_MOST, 1)]:
            data = source.read([(int(stored.offsets[tile.number]), int(stored.counts[tile.number]))])[0]
            before = time.thread_time()
            decoder.decode(data, how.halved, tile.rows)
            spent += time.thread_time() - before
            count += 1
            if spent > seconds:
                break
    except (DecodeError, EosinError):
        return None
    finally:
        source.close()
    return spent / count * len(wanted) if count else 0.0


def stored_under(slide: Slide, level: int, places: list[Address]) -> list[StoredTile]:
    """The stored tiles under the box that holds all of `places`. level: as in `Serving`, halved ones counted on."""
    chosen, (tile_width, tile_height) = (*slide.levels, *slide.halved_levels)[level], slide.tile_size(level)
    side_um = places[0].size_px * places[0].mpp
    spans, end = [], 0
    for starts, own, down, tile, room in (
        ([place.x for place in places], slide.mpp_x, chosen.downsample_x, tile_width, chosen.width),
        ([place.y for place in places], slide.mpp_y, chosen.downsample_y, tile_height, chosen.height),
    ):
        first = min(int(min(starts) / down), room - 1)
        end = min(max(math.ceil((max(starts) + side_um / own) / down), first + 1), room)  # at last: of the rows
        spans.append(range(first // tile, (end - 1) // tile + 1))
    across = -(-chosen.width // tile_width)
    return [
        StoredTile(row * across + column, min(end - row * tile_height, tile_height))
        for row, column in product(spans[1], spans[0])
    ]


def _stored_level(slide: Slide, level: int) -> int:
    """The stored level that a level is decoded from: itself, or the one that is halved."""
    count = len(slide.levels)
    if level < count:
        return level
    downsample = slide.halved_levels[level - count].downsample_x / 2
    return next(number for number, stored in enumerate(slide.levels) if stored.downsample_x == downsample)
