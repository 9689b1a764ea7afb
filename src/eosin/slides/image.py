"""A plain TIFF, PNG or JPEG as a slide, its µm/px stated by the user (or by a TIFF's resolution tag).

Such a file has to be decoded whole. That happens once, on the first read, and levels of half the size each
are made in memory, so that coarse µm/px stay quick. PNG and JPEG never state a scale that can be trusted:
their density fields are print resolutions.
"""

from __future__ import annotations

import logging
import threading
import warnings
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from eosin.errors import SlideError
from eosin.slides.reader import Level, Slide, mpp_of_resolution
from eosin.slides.resample import Pixels

# A damaged file is told of in our one line; tifffile would log lines of its own before it.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

MAX_PIXELS = 178_956_970  # above this Pillow itself takes a file for a decompression bomb
_SMALLEST_SIDE = 256
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NOT_A_SLIDE = (
    "not a slide that OpenSlide knows, nor a readable TIFF, PNG or JPEG; damaged, truncated or another format"
)


class ImageSlide(Slide):
    """An image file that is held decoded in memory from the first read until `close()`."""

    reader = "image"

    def __init__(self, path: Path, mpp: float | None = None) -> None:
        """Read the header of `path`; SlideError: no image, too large, or no believable µm/px."""
        with open(path, "rb") as handle:
            self._is_tiff = handle.read(4) in _TIFF_STARTS
        vendor, width, height, stated = _tiff_header(path) if self._is_tiff else _image_header(path)
        if width * height > MAX_PIXELS:
            raise SlideError(_too_large(path, f"{width}x{height} px"))
        super().__init__(path, vendor, _levels(width, height), (mpp, mpp) if mpp is not None else stated)
        self._pixels: list[Pixels] | None = None
        self._lock = threading.Lock()

    def _read(self, level: int, column: int, row: int, width: int, height: int, whole_tiles: bool = False) -> Pixels:
        with self._lock:
            if self._pixels is None:
                self._pixels = _halved(self._decode(), self.levels)
            pixels = self._pixels[level]
        return pixels[row : row + height, column : column + width].copy()

    def _decode(self) -> Pixels:
        pixels = _tiff_pixels(self.path) if self._is_tiff else _image_pixels(self.path)
        if pixels.shape != (self.height, self.width, 3):
            raise SlideError(f"{self.path}: decodes to {pixels.shape}, its header says otherwise")
        return pixels

    def close(self) -> None:
        """Release the decoded pixels."""
        self._pixels = None


def _levels(width: int, height: int) -> tuple[Level, ...]:
    levels = [Level(width, height, 1.0, 1.0)]
    while min(levels[-1].width, levels[-1].height) >= 2 * _SMALLEST_SIDE:
        last = levels[-1]
        factor = last.downsample_x * 2
        levels.append(Level((last.width + 1) // 2, (last.height + 1) // 2, factor, factor))
    return tuple(levels)


def _halved(pixels: Pixels, levels: tuple[Level, ...]) -> list[Pixels]:
    """Means of 2x2 pixels, level by level; an odd last row or column is repeated."""
    made = [pixels]
    for level in levels[1:]:
        last = made[-1]
        padding = (0, 2 * level.height - last.shape[0], 0, 2 * level.width - last.shape[1])
        even = cv2.copyMakeBorder(last, *padding, cv2.BORDER_REPLICATE) if any(padding) else last
        made.append(np.asarray(cv2.resize(even, (level.width, level.height), interpolation=cv2.INTER_AREA)))
    return made


def _too_large(path: Path, size: str) -> str:
    return (
        f"{path}: {size} is too large to decode whole (limit {MAX_PIXELS / 1e6:.0f} MP); "
        "convert it to a tiled pyramidal TIFF"
    )


def _image_header(path: Path) -> tuple[str, int, int, tuple[None, None]]:
    with _open_image(path) as image:
        if image.mode.startswith(("I", "F")):
            raise SlideError(f"{path}: {image.mode} pixels; only images of 8 bits a channel are read")
        return (image.format or "image").lower(), image.width, image.height, (None, None)


def _image_pixels(path: Path) -> Pixels:
    with _open_image(path) as image:
        try:
            if image.format == "JPEG" and image.mode == "RGB":  # the same pixels as Pillow's, in a quarter of the time
                return simplejpeg.decode_jpeg(path.read_bytes(), "RGB")
            if "A" in image.getbands() or "transparency" in image.info:
                layer = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
            return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise SlideError(f"{path}: cannot be decoded: {error}") from error


def _open_image(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return Image.open(path, formats=("JPEG", "PNG"))
    except Image.DecompressionBombError as error:
        raise SlideError(_too_large(path, "the image")) from error
    except (OSError, SyntaxError, ValueError) as error:
        raise SlideError(f"{path}: {_NOT_A_SLIDE}") from error


def _tiff_header(path: Path) -> tuple[str, int, int, tuple[float | None, float | None]]:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            depth = (str(page.dtype), page.samplesperpixel)
            unit = {2: "inch", 3: "centimeter"}.get(int(page.resolutionunit or 1), "")
            stated = [mpp_of_resolution(value, unit) for value in page.get_resolution()]
            width, height = page.imagewidth, page.imagelength
    except Exception as error:  # tifffile raises whatever a broken tag leads to
        raise SlideError(f"{path}: {_NOT_A_SLIDE}") from error
    if depth[0] != "uint8" or depth[1] not in (1, 3, 4):
        raise SlideError(f"{path}: {depth[1]} channels of {depth[0]}; only 8-bit grey, RGB and RGBA are read")
    return "tiff", width, height, (stated[0], stated[1])


def _tiff_pixels(path: Path) -> Pixels:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            planar = page.planarconfig == 2 and page.samplesperpixel > 1
            minimum_is_white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE
            palette = page.photometric == tifffile.PHOTOMETRIC.PALETTE
            pixels = np.asarray(page.asrgb(uint8=True) if palette else page.asarray())
    except Exception as error:  # decoders raise errors of their own
        raise SlideError(f"{path}: cannot be decoded: {error}") from error
    if planar:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = np.repeat((255 - pixels if minimum_is_white else pixels)[..., None], 3, axis=2)
    if pixels.shape[2] == 4:
        share = pixels[..., 3:].astype(np.float32) / 255
        pixels = (pixels[..., :3] * share + 255 * (1 - share) + 0.5).astype(np.uint8)
    return np.ascontiguousarray(pixels)
