"""Tiles from folders of images that were cut already: each image is a tiny slide of a stated µm/px.

A tile is a random window of the image at the wanted µm/px. There is no foreground mask here; the HSV rule applies.
"""

from __future__ import annotations

import glob
from pathlib import Path

import cv2
import numpy as np

from eosin.errors import DataError, PlanError, SlideError
from eosin.provenance import hash_of
from eosin.randomness import Words
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels
from eosin.tiles.plan import Address

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
    """Images of one µm/px in a folder or glob."""

    def __init__(self, where: str, mpp: float, config: TilesConfig) -> None:
        """where: folder or glob; mpp: µm/px of the images. Raises DataError or PlanError (a scale it cannot give)."""
        if not 0.05 <= mpp <= 20:
            raise DataError(
                f"{where}: {mpp} µm/px is not believable (0.05 to 20); give the tiles' own scale with --mpp"
            )
        self.where, self.mpp = where, mpp
        self._images = find_images(where)
        with_shape = cv2.imread(str(self._images[0]), cv2.IMREAD_COLOR)
        if with_shape is None:
            raise DataError(f"{self._images[0]} is not a readable image")
        try:
            self.config = config.offered_by(mpp, min(with_shape.shape[:2]) * mpp)
        except ValueError as error:
            raise PlanError(f"{where}: {error} (images: {mpp:g} µm/px); change tiles.mpp or tiles.size_px") from error
        root = Path(where) if Path(where).is_dir() else Path(glob.escape(where)).parent
        names = [[_name(path, root), path.stat().st_size] for path in self._images]
        self.hash = hash_of([names, mpp, self.config.model_dump()])

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address | None:
        """See `Source.draw`. The window is drawn as a share of the room, which is known when the image is read."""
        mpp = self.config.draw_mpp(Words(seed, "mpp", index))
        image = int(Words(seed, "image", index, attempt).integers(len(self._images), 1)[0])
        words = Words(seed, "position", index, attempt).integers(2**20, 2)
        return Address(number, image, self._images[image].name, int(words[0]), int(words[1]), mpp, self.config.size_px)

    def read(self, address: Address) -> Pixels:
        """See `Source.read`."""
        path = self._images[address.image]
        stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if stored is None:
            raise SlideError(f"{path} is not a readable image")
        side = address.size_px * address.mpp / self.mpp  # px of the stored image
        whole = int(np.ceil(side - 1e-9))
        room_y, room_x = stored.shape[0] - whole, stored.shape[1] - whole
        if min(room_x, room_y) < 0:
            raise SlideError(
                f"{path}: {stored.shape[1]}x{stored.shape[0]} px is smaller than a tile at {address.mpp:g} µm/px"
            )
        x, y = (room_x + 1) * address.x >> 20, (room_y + 1) * address.y >> 20
        window = np.ascontiguousarray(stored[y : y + whole, x : x + whole, ::-1])
        if whole == address.size_px and abs(side - whole) < 1e-6:
            return window
        kind = cv2.INTER_AREA if whole > address.size_px else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(window, (address.size_px, address.size_px), interpolation=kind), dtype=np.uint8)


def _name(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
