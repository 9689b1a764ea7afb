"""Tiles from folders of images that were cut already: each image is a tiny slide of a stated µm/px.

A tile is a random window of the image at the wanted µm/px. There is no foreground mask here; the HSV rule applies.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from eosin.errors import DataError, PlanError, SlideError
from eosin.provenance import hash_of
from eosin.randomness import Words
from eosin.slides.resample import Axis, resample
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels
from eosin.tiles.source import Address

IMAGE_TYPES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def find_images(where: str) -> list[Path]:
    """Images below a folder (recursively) or matching a glob, sorted. Raises DataError where there is none."""
    root = Path(where)
    found = root.rglob("*") if root.is_dir() else (Path(name) for name in glob.glob(where, recursive=True))
    images = sorted(path for path in found if path.suffix.lower() in IMAGE_TYPES)
    if not images:
        raise DataError(f"no images ({', '.join(IMAGE_TYPES)}) found at {where}")
    return images


class FolderSource:
    """Images of one µm/px in a folder or glob. `tiles_per_visit` means nothing here: an image is read whole."""

    wide = far = False

    def __init__(self, where: str, mpp: float, config: TilesConfig) -> None:
        """where: folder or glob; mpp: µm/px of the images. Raises DataError or PlanError (a scale it cannot give)."""
        if not 0.05 <= mpp <= 20:
            raise DataError(
                f"{where}: {mpp} µm/px is not believable (0.05 to 20); give the tiles' own scale with --mpp"
            )
        self.where, self.mpp = where, mpp
        self._images = find_images(where)
        self._sizes: dict[int, tuple[int, int]] = {}
        try:
            self.config = config.offered_by(mpp, min(self._size(0)) * mpp)
        except SlideError as error:
            raise DataError(str(error)) from error
        except ValueError as error:
            raise PlanError(f"{where}: {error} (images: {mpp:g} µm/px); change tiles.mpp or tiles.size_px") from error
        self._names = _names(where, self._images)
        sizes = [path.stat().st_size for path in self._images]
        self.hash = hash_of([list(zip(self._names, sizes, strict=True)), mpp, self.config.model_dump()])

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    @property
    def told(self) -> str:
        """See `Source.told`."""
        return f"{len(self)} tiles of {self.mpp:g} µm/px (folder {self.hash})"

    def check(self) -> None:
        """See `Source.check`. The folder was listed a moment ago."""

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address:
        """See `Source.draw`. An image that cannot be opened gets the corner (0, 0), and fails when it is read."""
        mpp = self.config.draw_mpp(Words(seed, "mpp", index))
        image = int(Words(seed, "image", index, attempt).integers(len(self._images), 1)[0])
        side = math.ceil(self.config.size_px * mpp / self.mpp - 1e-6)  # px of the stored image
        try:
            room = [max(0, length - side) + 1 for length in self._size(image)]
        except SlideError:
            room = [1, 1]
        words = Words(seed, "position", index, attempt)
        x, y = (int(words.integers(count, 1)[0]) for count in room)
        return Address(number, image, self._names[image], x, y, mpp, self.config.size_px)

    def around(self, address: Address, words: Words) -> list[Address]:
        """See `Source.around`: nothing but the place itself."""
        return [address] * self.config.tiles_per_visit

    def read(self, addresses: Sequence[Address]) -> list[Pixels]:
        """See `Source.read`; the addresses may be of any images."""
        return [self._read(address) for address in addresses]

    def _read(self, address: Address) -> Pixels:
        path = self._images[address.image]
        stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if stored is None:
            raise SlideError(f"{path} is not a readable image")
        scale = address.mpp / self.mpp
        if min(stored.shape[:2]) + 1e-6 < address.size_px * scale:
            height, width = stored.shape[:2]
            raise SlideError(f"{path}: {width}x{height} px is smaller than a tile at {address.mpp:g} µm/px")
        across, down = Axis.of(address.x, scale, address.size_px), Axis.of(address.y, scale, address.size_px)
        rows = np.clip(np.arange(down.first, down.first + down.length), 0, stored.shape[0] - 1)
        columns = np.clip(np.arange(across.first, across.first + across.length), 0, stored.shape[1] - 1)
        return resample(np.ascontiguousarray(stored[rows[:, None], columns][..., ::-1]), across, down)

    def _size(self, image: int) -> tuple[int, int]:
        """Width and height from the file's header, remembered."""
        if image not in self._sizes:
            try:
                with Image.open(self._images[image]) as header:
                    self._sizes[image] = header.size
            except OSError as error:
                raise SlideError(f"{self._images[image]} is not a readable image") from error
        return self._sizes[image]


def _names(where: str, images: list[Path]) -> list[str]:
    """Paths below what all images share, so that a moved folder keeps its names and equal names stay apart."""
    root = Path(where) if Path(where).is_dir() else Path(os.path.commonpath([path.parent for path in images]))
    return [path.relative_to(root).as_posix() for path in images]
