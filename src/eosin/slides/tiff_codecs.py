"""From the stored bytes of one TIFF tile to its pixels: JPEG, JPEG 2000, LZW, Deflate, Zstandard, PackBits, none.

A decoder is told how large a tile is, checks the header of the compressed data against it before it decodes,
and never makes more than that: a tile that claims to be gigabytes is a `DecodeError`. JPEG is decoded by
libjpeg-turbo with its exact (slow) transform and smooth chroma, so pixels are those of every reader built on
libjpeg. Warnings of the decoder count as errors: a damaged tile is told of, not handed on, unless only its upper
rows are asked for: most damage shows at the end of a stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import imagecodecs
import numpy as np
import simplejpeg

from eosin.slides.resample import Pixels

JPEG = 7
JPEG_2000 = frozenset([33003, 33005, 34712])
_YCC_2000 = 33003  # Aperio: JPEG 2000 of YCbCr, no colour transform of its own
_RAW, _LZW, _DEFLATE, _PACKBITS, _ZSTD = 1, 5, frozenset([8, 32946]), 32773, 50000
COMPRESSIONS = frozenset([_RAW, _LZW, _PACKBITS, _ZSTD, JPEG]) | _DEFLATE | JPEG_2000

GREY, RGB, YCC = 1, 2, 6  # TIFF's PhotometricInterpretation
MAX_TILE_PIXELS = 1 << 24
_SOI, _EOI, _JFIF = b"\xff\xd8", b"\xff\xd9", b"\xff\xe0"
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"  # then one byte: 0 RGB, 1 YCbCr
_FRAME = b"\xff\xc0"  # of a baseline stream: then length, bits, height, width, samples
_HEADER_BYTES = 4096
_ROWS_BELOW = 4  # chroma of the row below the last is mixed in
_ROWS_LEFT_OUT = 16
_BYTES_LEFT = "extraneous bytes before marker 0xd9"
_CODESTREAM = b"\xff\x4f\xff\x51"  # JPEG 2000: start, then the size marker

# libjpeg's YCbCr to RGB, in its fixed point of 16 bits
_OFF = np.arange(256) - 128
_CR_RED = ((int(1.402 * 65536 + 0.5) * _OFF + 32768) >> 16).astype(np.int16)
_CB_BLUE = ((int(1.772 * 65536 + 0.5) * _OFF + 32768) >> 16).astype(np.int16)
_CB_GREEN = np.round(-0.34414 * 65536 * _OFF + 32768).astype(np.int32)
_CR_GREEN = np.round(-0.71414 * 65536 * _OFF).astype(np.int32)


class DecodeError(Exception):
    """A tile whose bytes are not what its directory says."""


@dataclass(frozen=True)
class Coding:
    """How the tiles of one level are stored.

    compression and photometric are TIFF's numbers; samples is 1 or 3, 8 bits each, interleaved. predictor:
    horizontal differences. tables: the tag JPEGTables.
    """

    tile_width: int
    tile_height: int
    compression: int
    photometric: int
    samples: int
    predictor: bool
    tables: bytes

    @property
    def halves(self) -> bool:
        """A tile can be decoded at half its size, for little more than half the work."""
        return self.compression == JPEG and self.tile_width % 2 == 0 and self.tile_height % 2 == 0

    @property
    def most_bytes(self) -> int:
        """No tile takes more bytes than this."""
        return 4 * self.tile_width * self.tile_height * self.samples + 65536


class Decoder:
    """Decodes the tiles of one level; threads may share it."""

    def __init__(self, coding: Coding) -> None:
        self._coding = coding
        self._shape = (coding.tile_height, coding.tile_width, coding.samples)
        tables = coding.tables
        body = tables[2:-2] if tables.startswith(_SOI) and tables.endswith(_EOI) else b""
        # libjpeg guesses the colours of a stream without markers; TIFF's tag knows them
        self._prefix = _SOI + _ADOBE + bytes([coding.photometric == YCC]) + body
        sides = coding.tile_height.to_bytes(4, "big")[2:] + coding.tile_width.to_bytes(4, "big")[2:]
        self._frame = _FRAME + bytes([0, 8 + 3 * coding.samples, 8]) + sides + bytes([coding.samples])

    def decode(self, data: bytes, half: bool = False, rows: int | None = None) -> Pixels:
        """A tile uint8 RGB [tile_height, tile_width, 3], or both sides halved; DecodeError where it is damaged.

        rows: how many of its upper rows are wanted. Those below them may be left out, which is quicker; damage is then
        told of only where the decoder cannot go on.
        """
        return self._jpeg(data, half, rows) if self._coding.compression == JPEG else self._whole(data, half)

    def check(self, data: bytes) -> None:
        """DecodeError where the header of a tile is of a kind that is not decoded here; cheap."""
        if self._coding.compression == JPEG:
            try:
                height, width, *_ = simplejpeg.decode_jpeg_header(self._jpeg_stream(data))
            except ValueError as error:
                raise DecodeError(str(error)) from error
            if (height, width) != self._shape[:2]:
                raise DecodeError(f"a JPEG stream of {width}x{height} px")
        elif self._coding.compression in JPEG_2000:
            self._check_2000(data)

    def _jpeg_stream(self, data: bytes) -> bytes:
        """A tile with its tables and a marker of what its colours are."""
        if data[:2] != _SOI:
            raise DecodeError("no JPEG stream")
        start = 2
        if self._coding.photometric == RGB and data[2:4] == _JFIF:  # JFIF would mean YCbCr
            start += 2 + int.from_bytes(data[4:6], "big")
        end = b"" if data[-2:] == _EOI else _EOI
        return b"".join((self._prefix, memoryview(data)[start:], end))

    def _upper_rows(self, stream: bytes, half: bool, rows: int) -> Pixels | None:
        """The first `rows` rows of a JPEG tile and some more, None where it has to be decoded whole.

        The height in its header is made smaller, so the decoder stops there. It then finds the bytes that are left
        and says so; whatever else it says is left to the whole decode to explain.
        """
        height = (rows << half) + _ROWS_BELOW
        at = stream.find(self._frame, 0, _HEADER_BYTES) if height <= self._shape[0] - _ROWS_LEFT_OUT else -1
        if at < 0:
            return None
        begin, end = at + 5, at + 7
        view = memoryview(stream)
        shorter = b"".join((view[:begin], height.to_bytes(2, "big"), view[end:]))
        room = np.empty((height >> half, self._shape[1] >> half, 3), np.uint8)
        try:
            _decode(shorter, room, half)
        except ValueError as error:
            return room if str(error).endswith(_BYTES_LEFT) else None
        return None

    def _jpeg(self, data: bytes, half: bool, rows: int | None) -> Pixels:
        stream = self._jpeg_stream(data)
        if rows is not None and (upper := self._upper_rows(stream, half, rows)) is not None:
            return upper
        room = np.empty((self._shape[0] >> half, self._shape[1] >> half, 3), np.uint8)
        try:
            pixels = _decode(stream, room, half)
        except ValueError as error:
            raise DecodeError(str(error)) from error
        if pixels.shape != room.shape:
            raise DecodeError(f"a JPEG stream of {pixels.shape[1]}x{pixels.shape[0]} px")
        return room

    def _whole(self, data: bytes, half: bool) -> Pixels:
        if half:
            raise ValueError("only JPEG tiles are halved")
        if self._coding.compression in JPEG_2000:
            return self._jpeg_2000(data)
        pixels = np.frombuffer(self._unpacked(data), np.uint8).reshape(self._shape)
        if self._coding.predictor:
            pixels = imagecodecs.delta_decode(pixels, axis=1)
        return _as_rgb(pixels)

    def _unpacked(self, data: bytes) -> bytes:
        compression, length = self._coding.compression, int(np.prod(self._shape))
        try:
            if compression == _LZW:
                data = imagecodecs.lzw_decode(data, out=length)
            elif compression == _PACKBITS:
                data = imagecodecs.packbits_decode(data, out=length)
            elif compression == _ZSTD:
                data = imagecodecs.zstd_decode(data, out=length)
            elif compression in _DEFLATE:
                data = imagecodecs.zlib_decode(data, out=length)
        except Exception as error:  # each codec has an error class of its own
            raise DecodeError(str(error) or type(error).__name__) from error
        if len(data) != length:
            raise DecodeError(f"{len(data)} bytes of pixels where {length} belong")
        return bytes(data)

    def _jpeg_2000(self, data: bytes) -> Pixels:
        self._check_2000(data)
        try:
            pixels = imagecodecs.jpeg2k_decode(data)
        except Exception as error:
            raise DecodeError(str(error) or type(error).__name__) from error
        if pixels.reshape(self._shape).dtype != np.uint8:
            raise DecodeError(f"JPEG 2000 of {pixels.dtype}")
        pixels = pixels.reshape(self._shape)
        return _rgb_of_ycc(pixels) if self._coding.compression == _YCC_2000 else _as_rgb(pixels)

    def _check_2000(self, data: bytes) -> None:
        """The size marker must tell of one tile of 8-bit samples, all of full size."""
        at = data.find(_CODESTREAM, 0, 512)
        if at < 0 or len(data) < at + 42 + 3 * self._coding.samples:
            raise DecodeError("no JPEG 2000 stream")
        right, bottom, left, top, tile_width, tile_height = (
            int.from_bytes(data[at + place : at + place + 4], "big") for place in range(8, 32, 4)
        )
        samples = int.from_bytes(data[at + 40 : at + 42], "big")
        if (bottom - top, right - left, samples) != self._shape:
            raise DecodeError(f"a JPEG 2000 stream of {right - left}x{bottom - top} px, {samples} samples")
        if min(tile_width, tile_height) < 16:
            raise DecodeError(f"a JPEG 2000 stream in parts of {tile_width}x{tile_height} px")
        if data[at + 42 : at + 42 + 3 * samples] != b"\x07\x01\x01" * samples:
            raise DecodeError("JPEG 2000 with subsampled colours or other than 8 bits")


def _decode(stream: bytes, room: Pixels, half: bool) -> Pixels:
    """A JPEG stream into `room`; ValueError for any warning, and for one that needs more room, before it begins."""
    if half:
        height, width, _ = room.shape
        return simplejpeg.decode_jpeg(stream, "RGB", min_height=height, min_width=width, min_factor=2, buffer=room)
    return simplejpeg.decode_jpeg(stream, "RGB", buffer=room)


def _as_rgb(pixels: Pixels) -> Pixels:
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)


def _rgb_of_ycc(pixels: Pixels) -> Pixels:
    """YCbCr [h, w, 3] to RGB, rounded as libjpeg does."""
    grey, blue, red = pixels[..., 0].astype(np.int16), pixels[..., 1], pixels[..., 2]
    green = ((_CB_GREEN[blue] + _CR_GREEN[red]) >> 16).astype(np.int16)
    return np.clip(np.stack([grey + _CR_RED[red], grey + green, grey + _CB_BLUE[blue]], axis=2), 0, 255).astype(
        np.uint8
    )
