"""Windows: the squares of large images that an encoder sees, and the way back from them to whole label maps.

| layout | windows of an image |
|---|---|
| cover | squares that cover it, evenly spread, overlapping as far as they must; smaller images are mirrored |
| grid | whole squares from the top left corner on; what is left at the right and below is dropped (eva's) |
| crop | the whole image, short side to the input size, centre crop; what is cut off is dropped (eva's) |
| views | random crops of 8 to 100 % of the area, 3:4 to 4:3 (Szegedy et al. 2015; eva trains on them in one task) |

Where squares of `cover` overlap, a pixel belongs to the one whose end is farther away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pixels_of

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageFiles
from eosin.evaluation.tasks.masks import IGNORE, Masks
from eosin.provenance import hash_of
from eosin.randomness import Words

Layout = Literal["cover", "grid", "crop", "views"]
Picture = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Windows:
    """W windows, those of an image side by side, images in order. `image` [W]: number of the image. `boxes` [W, 4]:
    top, left, height, width in px of the image (it may end before the box does). `owned` [W, 4]: top, bottom, left,
    right in px of the image: what a label map takes from this window. `size_px`: side as the encoder sees it.
    """

    layout: Layout
    size_px: int
    image: Ints
    boxes: Ints
    owned: Ints

    def __len__(self) -> int:
        return len(self.image)

    def of(self, images: Ints) -> Ints:
        """Numbers of the windows of these images, ascending."""
        return np.flatnonzero(np.isin(self.image, images))

    def place(self, index: int) -> tuple[int, int, int, int]:
        """Top, left, height, width of the px of the image that the window shows, its own S x S made to fit."""
        if self.layout == "crop":
            top, bottom, left, right = self.owned[index].tolist()
            return top, left, bottom - top, right - left
        top, left, height, width = self.boxes[index].tolist()
        return top, left, height, width

    @property
    def hash(self) -> str:
        """Hash of all that says which pixels a window shows."""
        return hash_of([self.layout, self.size_px, self.image.tolist(), self.boxes.tolist()])


def sizes_of(images: Any) -> Ints:
    """Height and width of each image, int64 [N, 2]; of files the header alone is read."""
    if isinstance(images, ImageFiles):
        sizes = []
        for path in images.paths:
            try:
                with Image.open(path) as image:
                    sizes.append((image.height, image.width))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                raise DataError(f"cannot read image {path}: {error}") from error
        return np.array(sizes, dtype=np.int64)
    return np.array([images[row].shape[:2] for row in range(len(images))], dtype=np.int64)


def lay_out(
    sizes: Ints,
    layout: Layout,
    size_px: int,
    side_px: int,
    *,
    only: Ints | None = None,
    views: int = 0,
    words: Words | None = None,
) -> Windows:
    """Windows of images of `sizes` [N, 2], of those numbered in `only` where given. `side_px`: of a square of cover and
    grid in px of the image, so that a px that the encoder sees is side_px / size_px image px wide. `views`: crops an
    image, drawn from `words`.
    """
    image: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    owned: list[tuple[int, int, int, int]] = []
    for number in range(len(sizes)) if only is None else only.tolist():
        height, width = sizes[number].tolist()
        if layout == "views":
            assert words is not None
            found = _random_boxes(height, width, views, words)
            image += [number] * len(found)
            boxes += found
            owned += [(0, 0, 0, 0)] * len(found)
            continue
        if layout == "crop":
            short = min(height, width)
            top, left = (height - short) // 2, (width - short) // 2
            image.append(number)
            boxes.append((0, 0, height, width))
            owned.append((top, top + short, left, left + short))
            continue
        across = (_spread if layout == "cover" else _whole)(width, side_px)
        for top, first_row, last_row in (_spread if layout == "cover" else _whole)(height, side_px):
            for left, first, last in across:
                image.append(number)
                boxes.append((top, left, side_px, side_px))
                owned.append((first_row, last_row, first, last))
    shape = (len(image), 4)
    return Windows(
        layout,
        size_px,
        np.array(image, dtype=np.int64),
        np.array(boxes, dtype=np.int64).reshape(shape),
        np.array(owned, dtype=np.int64).reshape(shape),
    )


class WindowImages(Sequence[Picture]):
    """What the encoder sees: item i is uint8 [S, S, 3], bilinear with antialias. The image read last stays decoded."""

    def __init__(self, images: Any, windows: Windows) -> None:
        self.images, self.windows = images, windows
        self._last: tuple[int, Picture] | None = None

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        number = int(self.windows.image[index])
        if self._last is None or self._last[0] != number:
            self._last = number, self.images[number]
        piece = _piece(self._last[1], self.windows.boxes[index], None)
        tensor = torch.from_numpy(np.require(piece, requirements=["C", "W"])).permute(2, 0, 1)
        return _sized(tensor, self.windows, InterpolationMode.BILINEAR).permute(1, 2, 0).numpy()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}


def window_mask(mask: Picture, windows: Windows, index: int) -> Picture:
    """The part of a mask [H, W] that belongs to a window: uint8 [S, S], nearest; beyond the image IGNORE."""
    piece = _piece(mask, windows.boxes[index], IGNORE)
    tensor = torch.from_numpy(np.require(piece, requirements=["C", "W"]))[None]
    return _sized(tensor, windows, InterpolationMode.NEAREST)[0].numpy()


def checked_mask(name: str, masks: Masks, number: int, size: Ints, sample: str) -> Picture:
    """Mask `number`, which must be as large as its image. Raises DataError, one line, where it is not."""
    mask = masks[number]
    if mask.shape != tuple(size.tolist()):
        found, wanted = f"{mask.shape[1]} x {mask.shape[0]}", f"{size[1]} x {size[0]}"
        raise DataError(f"task {name}: the mask of {sample} has {found} px, its image {wanted}")
    return mask


def _sized(tensor: torch.Tensor, windows: Windows, mode: InterpolationMode) -> torch.Tensor:
    """[C, h, w] -> [C, S, S]."""
    side = windows.size_px
    if windows.layout != "crop":
        if tensor.shape[-2:] == (side, side):
            return tensor
        return pixels_of.resize(tensor, [side, side], interpolation=mode, antialias=mode == InterpolationMode.BILINEAR)
    if min(tensor.shape[-2:]) != side:
        tensor = pixels_of.resize(tensor, [side], interpolation=mode, antialias=mode == InterpolationMode.BILINEAR)
    return pixels_of.center_crop(tensor, [side])


def _piece(pixels: Picture, box: Ints, beyond: int | None) -> Picture:
    """The box of an image; beyond its ends mirrored, or `beyond`."""
    top, left, height, width = box.tolist()
    piece = pixels[top : top + height, left : left + width]
    lacking = (height - piece.shape[0], width - piece.shape[1])
    if lacking == (0, 0):
        return piece
    pads = [(0, lacking[0]), (0, lacking[1]), *[(0, 0)] * (pixels.ndim - 2)]
    if beyond is None:
        return np.pad(piece, pads, mode="symmetric")
    return np.pad(piece, pads, constant_values=beyond)


def _spread(length: int, side: int) -> list[tuple[int, int, int]]:
    """(start, first owned, end of owned) of squares that cover `length` px."""
    number = max(1, -(-length // side))
    starts = [round(step * (length - side) / (number - 1)) for step in range(number)] if number > 1 else [0]
    edges = [0, *((a + side + b) // 2 for a, b in pairwise(starts)), length]
    return list(zip(starts, edges[:-1], edges[1:], strict=True))


def _whole(length: int, side: int) -> list[tuple[int, int, int]]:
    """(start, start, end) of whole squares in `length` px."""
    return [(start, start, start + side) for start in range(0, length - side + 1, side)]


def _random_boxes(height: int, width: int, count: int, words: Words) -> list[tuple[int, int, int, int]]:
    """Crops (top, left, height, width): area uniform in 8 to 100 %, log of width to height uniform in 3:4 to 4:3; after
    ten that do not fit the largest centred one of an allowed shape.
    """
    boxes = []
    for _ in range(count):
        box = None
        for _ in range(10):
            area = height * width * float(words.between(0.08, 1.0))
            shape = float(np.exp(words.between(np.log(3 / 4), np.log(4 / 3))))
            across, down = round((area * shape) ** 0.5), round((area / shape) ** 0.5)
            if 0 < across <= width and 0 < down <= height:
                top, left = int(words.integers(height - down + 1)), int(words.integers(width - across + 1))
                box = (top, left, down, across)
                break
        if box is None:
            across = min(width, round(height * 4 / 3)) if width > height else width
            down = min(height, round(width * 4 / 3)) if height > width else height
            box = ((height - down) // 2, (width - across) // 2, down, across)
        boxes.append(box)
    return boxes
