"""Damaged copies of a tiled TIFF: what disks, networks and attackers make of a slide."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import numpy as np

from eosin.slides.tiff_tags import IMAGE_LENGTH, IMAGE_WIDTH, TILE_BYTE_COUNTS, TILE_LENGTH, TILE_OFFSETS, TILE_WIDTH

Mutation = Callable[[bytearray, np.random.Generator], None]


def entries(data: bytearray) -> Iterator[tuple[int, int, int, int]]:
    """(place of the entry, tag, type, count) of all directories of a little-endian classic TIFF."""
    offset = struct.unpack_from("<I", data, 4)[0]
    while offset:
        count = struct.unpack_from("<H", data, offset)[0]
        for place in range(offset + 2, offset + 2 + 12 * count, 12):
            yield place, *struct.unpack_from("<HHI", data, place)
        offset = struct.unpack_from("<I", data, offset + 2 + 12 * count)[0]


def directories(data: bytearray) -> list[int]:
    """Places of the pointers to the next directory, the header's first."""
    places = [4]
    while offset := struct.unpack_from("<I", data, places[-1])[0]:
        places.append(offset + 2 + 12 * struct.unpack_from("<H", data, offset)[0])
    return places


def _set(data: bytearray, rng: np.random.Generator, tags: tuple[int, ...], value: int) -> None:
    """Set a tag that holds one number, in a random directory."""
    places = [place for place, tag, _, _ in entries(data) if tag in tags]
    place = places[rng.integers(len(places))]
    struct.pack_into("<HI", data, place + 2, 4, 1)
    struct.pack_into("<I", data, place + 8, value)


def _array(data: bytearray, rng: np.random.Generator, tag: int) -> tuple[int, int, str]:
    """Where the values of an array tag lie, how many they are, and their type."""
    found = [(place, kind, count) for place, number, kind, count in entries(data) if number == tag and count > 2]
    place, kind, count = found[rng.integers(len(found))]
    return struct.unpack_from("<I", data, place + 8)[0], count, "<u2" if kind == 3 else "<u4"


def flip_bits(data: bytearray, rng: np.random.Generator) -> None:
    """A few bits anywhere."""
    for place in rng.integers(0, len(data), rng.integers(1, 30)):
        data[place] ^= 1 << rng.integers(8)


def flip_head(data: bytearray, rng: np.random.Generator) -> None:
    """A few bits of the directories."""
    places = [place for place, *_ in entries(data)]
    for place in rng.choice(places, rng.integers(1, 4)):
        data[place + rng.integers(12)] ^= 1 << rng.integers(8)


def cut(data: bytearray, rng: np.random.Generator) -> None:
    """The end is missing."""
    del data[rng.integers(8, len(data)) :]


def zero_block(data: bytearray, rng: np.random.Generator) -> None:
    """A run of zero bytes, as of a bad disk."""
    start = rng.integers(0, len(data))
    stop = min(len(data), start + int(rng.integers(1, 20000)))
    data[start:stop] = bytes(stop - start)


def swap_offsets(data: bytearray, rng: np.random.Generator) -> None:
    """Tiles point to each other's bytes, their lengths staying."""
    start, count, kind = _array(data, rng, TILE_OFFSETS)
    values = np.frombuffer(data, kind, count, start).copy()
    data[start : start + values.nbytes] = rng.permutation(values).tobytes()


def offsets_into_directories(data: bytearray, rng: np.random.Generator) -> None:
    """Tiles point to the file's head and past its end."""
    start, count, kind = _array(data, rng, TILE_OFFSETS)
    values = rng.choice([0, 8, len(data) - 3, len(data), 0xFFFFFFF0], count).astype(kind)
    data[start : start + values.nbytes] = values.tobytes()


def long_tiles(data: bytearray, rng: np.random.Generator) -> None:
    """Byte counts of all the file and more."""
    start, count, kind = _array(data, rng, TILE_BYTE_COUNTS)
    values = rng.choice([len(data), 0xFFFF, 0xFFFFFFFF, 1], count).astype(np.uint32).astype(kind)
    data[start : start + values.nbytes] = values.tobytes()


def absurd_size(data: bytearray, rng: np.random.Generator) -> None:
    """Sides of billions of px, or none."""
    value = int(rng.choice([0, 1, 2**31 - 1, 2**32 - 1, 1 << 20, 70000]))
    _set(data, rng, (IMAGE_WIDTH, IMAGE_LENGTH), value)


def absurd_tile(data: bytearray, rng: np.random.Generator) -> None:
    """Tiles of billions of px, of one px, or none."""
    _set(data, rng, (TILE_WIDTH, TILE_LENGTH), int(rng.choice([0, 1, 17, 65536, 2**31, 2**32 - 1])))


def circle(data: bytearray, rng: np.random.Generator) -> None:
    """The last directory leads back to an earlier one."""
    places = directories(data)
    target = struct.unpack_from("<I", data, places[rng.integers(len(places) - 1)])[0]
    struct.pack_into("<I", data, places[-1], target)


def lost_directory(data: bytearray, rng: np.random.Generator) -> None:
    """A pointer to the next directory leads anywhere."""
    struct.pack_into("<I", data, int(rng.choice(directories(data))), int(rng.integers(0, 2 * len(data))))


def endless_tag(data: bytearray, rng: np.random.Generator) -> None:
    """A tag claims billions of values."""
    places = [place for place, *_ in entries(data)]
    struct.pack_into("<I", data, int(rng.choice(places)) + 4, int(rng.choice([2**32 - 1, 2**31, 2**24, 2**16])))


def jpeg_bomb(data: bytearray, rng: np.random.Generator) -> None:
    """Compressed tiles claim to be 65,500 px wide and high."""
    marker = data.find(b"\xff\xc0\x00")
    while marker >= 0:
        data[marker + 5 : marker + 9] = b"\xff\xdc\xff\xdc"
        marker = data.find(b"\xff\xc0\x00", marker + 9)
    marker = data.find(b"\xff\x4f\xff\x51")
    while marker >= 0:
        data[marker + 8 : marker + 16] = struct.pack(">II", 1 << 16, 1 << 16)
        marker = data.find(b"\xff\x4f\xff\x51", marker + 9)


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_head,
    cut,
    zero_block,
    swap_offsets,
    offsets_into_directories,
    long_tiles,
    absurd_size,
    absurd_tile,
    circle,
    lost_directory,
    endless_tag,
    jpeg_bomb,
)
