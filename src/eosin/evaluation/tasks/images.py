"""Labelled images as a sequence of uint8 arrays: files on disk, HDF5 files or one array in memory.

Decodes with Pillow, which refuses truncated files where other decoders fill them with grey. Knows no labels.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.errors import DataError
from eosin.evaluation.tasks.parquet import ParquetImages
from eosin.provenance import HASH_DIGITS, hash_file, hash_of

HashFile = Callable[[Path], str]
"""Hash of the bytes of a file: `provenance.hash_file`, or what remembers its answers."""
SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})


class ImageFiles(Sequence[npt.NDArray[np.uint8]]):
    """Image files, read when asked for: item i is uint8 [H, W, 3] RGB; sizes may differ."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return read_image(self.paths[index])

    def content_hash(self, hashed: HashFile = hash_file) -> str:
        """Hash over the bytes of all files in order (names do not enter: a moved data set is the same one)."""
        return hash_of([hashed(path) for path in self.paths])


class ImageRegions(Sequence[npt.NDArray[np.uint8]]):
    """Squares out of large image files: item i is uint8 [S, S, 3], S = `sizes[i]` px, centred at `centres[i]`.

    `files` [N] names the file of each, `centres` int64 [N, 2] is x, y in px. The file read last stays decoded, so
    neighbours in the list should lie in one file. What lies outside an image is white. Raises DataError for a
    square that does not touch its image.
    """

    def __init__(self, files: list[Path], centres: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]) -> None:
        self.paths, self.centres, self.sizes = files, centres, sizes
        self._last: tuple[Path, npt.NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        path, side = self.paths[index], int(self.sizes[index])
        if self._last is None or self._last[0] != path:
            self._last = path, read_image(path)
        image = self._last[1]
        left, top = (int(value) - side // 2 for value in self.centres[index])
        tile = np.full((side, side, 3), 255, dtype=np.uint8)
        part = image[max(0, top) : max(0, top + side), max(0, left) : max(0, left + side)]
        if part.size == 0:
            raise DataError(f"a square of {side} px at {self.centres[index].tolist()} lies outside of {path}")
        first, second = max(0, -top), max(0, -left)
        tile[first : first + part.shape[0], second : second + part.shape[1]] = part
        return tile

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def content_hash(self, hashed: HashFile = hash_file) -> str:
        """Hash over the bytes of the files and the squares."""
        hashes = {path: hashed(path) for path in dict.fromkeys(self.paths)}
        places = [hash_array(self.centres), hash_array(self.sizes)]
        return hash_of([[hashes[path] for path in self.paths], *places])


class ImageArray(Sequence[npt.NDArray[np.uint8]]):
    """Images of one size in memory: uint8 [N, H, W, 3]."""

    def __init__(self, pixels: npt.NDArray[np.uint8]) -> None:
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return self.pixels[index]

    def content_hash(self, hashed: HashFile = hash_file) -> str:
        """Hash over the pixels."""
        return hash_array(self.pixels)


class Hdf5Images(Sequence[npt.NDArray[np.uint8]]):
    """Images in one or several HDF5 files, read when asked for: each file holds uint8 [n, H, W, 3] under `key`.

    A file is opened on its first image in each process, so that worker processes can read side by side. Only
    what lies in the file itself is read: external links and external or virtual storage are refused. Raises
    DataError where a file is none, is cut short, or holds another shape.
    """

    def __init__(self, paths: list[Path], key: str) -> None:
        self.paths, self.key = paths, key
        sizes = [len(self._open(number)) for number in range(len(paths))]
        self.ends = np.cumsum(sizes)
        self._held: dict[tuple[int, int], Any] = {}

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        number = int(np.searchsorted(self.ends, index, side="right"))
        if not 0 <= index < len(self):
            raise IndexError(index)
        held = (os.getpid(), number)
        if held not in self._held:
            self._held[held] = self._open(number)
        row = index - (int(self.ends[number - 1]) if number else 0)
        try:
            return np.asarray(self._held[held][row])
        except OSError as error:
            raise DataError(f"cannot read image {row} of {self.paths[number]}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}

    def content_hash(self, hashed: HashFile = hash_file) -> str:
        """Hash over the bytes of all files in order."""
        return hash_of([hashed(path) for path in self.paths])

    def _open(self, number: int) -> Any:
        dataset = open_dataset(self.paths[number], self.key)
        if dataset.ndim != 4 or dataset.shape[3] != 3 or dataset.dtype != np.uint8:
            shape = f"{dataset.dtype} {dataset.shape}"
            raise DataError(f"{self.paths[number]}: {self.key} must be uint8 [n, H, W, 3], found {shape}")
        return dataset


Images = ImageFiles | ImageRegions | ImageArray | Hdf5Images | ParquetImages


def open_dataset(path: Path, key: str) -> Any:
    """The h5py dataset `key` of the file `path`, held in that file alone. Raises DataError, one line, else."""
    import h5py

    try:
        file = h5py.File(path, "r")
        parts = key.split("/")
        for depth in range(1, len(parts) + 1):
            link = file.get("/".join(parts[:depth]), getlink=True)
            if link is None:
                raise DataError(f"{path}: looked for {key!r}, found {', '.join(file) or 'nothing'}")
            if not isinstance(link, h5py.HardLink):
                raise DataError(f"{path}: {key!r} is a link, and links to other places are not followed")
        dataset = file[key]
    except OSError as error:
        raise DataError(f"cannot read {path} as HDF5: {error}") from error
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: {key!r} is not an array that this file holds itself")
    return dataset


def hash_array(array: npt.NDArray[np.generic]) -> str:
    """Hash over shape, type and bytes of an array."""
    digest = hashlib.sha256(f"{array.shape}{array.dtype}".encode())
    digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def find_images(folder: Path) -> list[Path]:
    """Image files below `folder` at any depth, hidden ones left out, in order of their relative path."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    visible = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(visible, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: Path) -> npt.NDArray[np.uint8]:
    """One image file as uint8 [H, W, 3] RGB. Raises DataError naming the file where it cannot be decoded
    whole, or is larger than Pillow takes (179 million px).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read image {path}: {error}") from error
