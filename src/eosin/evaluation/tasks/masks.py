"""Masks: the class of each pixel, as a sequence of label maps that are read when asked for.

A mask file is a PNG or TIFF of one channel (its value is the class), or what a task's own reader makes of its
format (MATLAB, polygons). Knows no images and no splits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.errors import DataError
from eosin.provenance import hash_file, hash_of

IGNORE = 255
"""Pixels of this class count neither in training nor in scores."""
_MOST_VALUES = 64

Mask = npt.NDArray[np.uint8]


class Masks(Sequence[Mask]):
    """Label maps: item i is uint8 [H, W], an index into the classes or IGNORE.

    `read` turns a file into int [H, W] of the file's own values; `values` maps those to classes (a value that
    it lacks is refused). None: the values are the classes already. Raises DataError naming the file.
    """

    def __init__(
        self,
        paths: list[Path],
        classes: int,
        read: Callable[[Path], npt.NDArray[np.integer]] | None = None,
        values: Mapping[int, int] | None = None,
    ) -> None:
        self.paths, self.classes, self.read, self.values = paths, classes, read or read_mask, values

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        path = self.paths[index]
        raw = self.read(path)
        found = np.unique(raw)
        table = {value: value for value in (*range(self.classes), IGNORE)} if self.values is None else self.values
        if unknown := [int(value) for value in found if int(value) not in table]:
            raise DataError(f"mask {path} holds the value {unknown[0]}, which is no class")
        mask = np.empty(raw.shape, dtype=np.uint8)
        for value in found:
            mask[raw == value] = table[int(value)]
        return mask

    def content_hash(self) -> str:
        """Hash over the bytes of all files in order, and over what their values stand for."""
        values = None if self.values is None else sorted(self.values.items())
        return hash_of([[hash_file(path) for path in self.paths], values])


def read_mask(path: Path) -> npt.NDArray[np.integer]:
    """One mask file as int [H, W]. Raises DataError naming a file that cannot be decoded or has colours."""
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read mask {path}: {error}") from error
    if pixels.ndim != 2 or not (np.issubdtype(pixels.dtype, np.integer) or pixels.dtype == np.bool_):
        raise DataError(f"mask {path} must have one channel of whole numbers, found {pixels.dtype} {pixels.shape}")
    return pixels.astype(np.int64)


def masks_of(name: str, paths: list[Path], folder: Path) -> tuple[Masks, tuple[str, ...]]:
    """The masks of somebody's own task and its classes.

    With `folder`/classes.txt, line i (from 0) names the value i, and 255 is IGNORE. Without it all masks are
    read once, and their distinct values, in order, are the classes; the first is the background. Raises
    DataError naming the file.
    """
    listed = folder / "classes.txt"
    if listed.is_file():
        classes = tuple(line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip())
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise DataError(f"task {name}: {listed} must name at least two classes, one a line, each once")
        return Masks(paths, len(classes)), classes
    values = _values_of(paths)
    if len(values) < 2:
        raise DataError(f"task {name}: all masks hold the one value {values[0]}; two classes are needed")
    return Masks(paths, len(values), values={value: row for row, value in enumerate(values)}), tuple(map(str, values))


def _values_of(paths: Sequence[Path]) -> list[int]:
    """The distinct values of mask files, in order. Raises DataError where there are too many to be classes."""
    found: set[int] = set()
    for path in paths:
        found |= set(np.unique(read_mask(path)).tolist())
        if len(found) > _MOST_VALUES:
            raise DataError(f"mask {path}: more than {_MOST_VALUES} values so far; are these instances, not classes?")
    return sorted(found)
