"""Labelled images as a sequence of uint8 arrays: files on disk or one array in memory.

Decodes with Pillow, which refuses truncated files where other decoders fill them with grey. Knows no labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.errors import DataError
from eosin.provenance import HASH_DIGITS, hash_file, hash_of

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})


class ImageFiles(Sequence[npt.NDArray[np.uint8]]):
    """Image files, read when asked for: item i is uint8 [H, W, 3] RGB; sizes may differ."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return read_image(self.paths[index])

    def content_hash(self) -> str:
        """Hash over the bytes of all files in order (names do not enter: a moved data set is the same one)."""
        return hash_of([hash_file(path) for path in self.paths])


class ImageArray(Sequence[npt.NDArray[np.uint8]]):
    """Images of one size in memory: uint8 [N, H, W, 3]."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.pixels[index]

    def content_hash(self) -> str:
        """Hash over the pixels."""
        return hash_array(self.pixels)


def hash_array(array: npt.NDArray[np.generic]) -> str:
    """Hash over shape, type and bytes of an array."""
    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """One image file as uint8 [H, W, 3] RGB. Raises DataError naming the file where it cannot be decoded
    whole.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {path}: {error}") from error


def find_images(folder: Path) -> list[Path]:
    """Image files below `folder` at any depth, hidden ones left out, in order of their relative path."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())
