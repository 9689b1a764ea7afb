"""The canvas of a synthetic tissue: a rectangle in micrometres to draw nuclei, fibres and noise on.

All sizes are in µm and all randomness is drawn on µm lattices (Philox words, no numpy Generator), so one seed
gives the same tissue at any µm/px. Which tissue is made of what is not known here; see `synthetic_tissue`.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from eosin.randomness import Words

Map = npt.NDArray[np.float32]
Layer = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]

_SUBPIXEL_BITS = 4


class Field:
    """An empty rectangle of tissue of `rows` x `cols` pixels at `mpp`: `haematoxylin` and `eosin` are [rows,
    cols].

    `depth_um(points)` tells how deep inside its region a point lies, so that a painter can leave out the
    crypts that the region's border would cut.
    """

    def __init__(
        self,
        rows: int,
        cols: int,
        mpp: float,
        words: Words,
        depth_um: Callable[[Array], Array] | None = None,
    ) -> None:
        self.rows, self.cols, self.mpp, self.words = rows, cols, mpp, words
        self.haematoxylin: Map = np.zeros((rows, cols), np.float32)
        self.eosin: Map = np.zeros((rows, cols), np.float32)
        self.depth_um = depth_um or (lambda points: np.full(len(points), np.inf))

    def noise(self, scale_um: float, octaves: int = 1) -> Map:
        """Smooth noise of mean 0 and standard deviation about 1 with features of `scale_um`."""
        total: Map = np.zeros((self.rows, self.cols), np.float32)
        for octave in range(octaves):
            total += 0.5**octave * lattice_noise(self.words, self.rows, self.cols, scale_um / 2**octave, self.mpp)
        return total

    def scatter(self, spacing_um: float, jitter: float = 0.3) -> Array:
        """Points of a shifted, jittered hexagonal lattice over field and margin: (x, y) in µm, [N, 2]."""
        step = spacing_um * np.sqrt(0.75)
        shift = self.words.uniform(2)
        down = np.arange(-2, int(self.rows * self.mpp / step) + 3) + shift[0]
        across = np.arange(-2, int(self.cols * self.mpp / spacing_um) + 3) + shift[1]
        x = (across[None, :] + 0.5 * (np.arange(len(down))[:, None] % 2)) * spacing_um
        y = np.repeat(down[:, None] * step, len(across), axis=1)
        points = np.stack([x, y], axis=-1).reshape(-1, 2)  # [N, 2]
        return points + self.words.between(-jitter, jitter, *points.shape) * spacing_um

    def at(self, values: Map, points: Array) -> Array:
        """`values` [rows, cols] at the pixels nearest to `points` (µm), clamped to the border."""
        pixel = (points / self.mpp).astype(np.int64)
        column, row = pixel[:, 0].clip(0, self.cols - 1), pixel[:, 1].clip(0, self.rows - 1)
        return np.asarray(values[row, column], np.float64)

    def layer(self) -> Layer:
        """An empty 8-bit layer to draw shapes on."""
        return np.zeros((self.rows, self.cols), np.uint8)

    def ellipses(
        self,
        layer: Layer,
        points: Array,
        long_um: npt.ArrayLike,
        short_um: npt.ArrayLike,
        angle: npt.ArrayLike,
        value: npt.ArrayLike,
    ) -> None:
        """Fill ellipses of half axes `long_um` (at `angle`, radians) and `short_um` with grey `value`."""
        scale = 2.0**_SUBPIXEL_BITS / self.mpp
        centre = np.rint(points * scale - 2 ** (_SUBPIXEL_BITS - 1)).astype(int)
        count = len(points)
        axes = np.stack([np.broadcast_to(long_um, count), np.broadcast_to(short_um, count)], axis=1) * scale
        whole = np.maximum(np.rint(axes), 1).astype(int)
        degrees = np.rad2deg(np.broadcast_to(angle, count))
        greys = np.broadcast_to(value, count)
        for spot, axis, turn, grey in zip(
            centre.tolist(), whole.tolist(), degrees.tolist(), greys.tolist(), strict=True
        ):
            cv2.ellipse(layer, spot, axis, turn, 0, 360, grey, -1, cv2.LINE_AA, _SUBPIXEL_BITS)

    def polygon(self, layer: Layer, points: Array, value: float, line_um: float | None = None) -> None:
        """Fill the closed polygon [N, 2] (µm) with grey `value`, or draw its outline `line_um` wide."""
        corners = np.rint(points * (2.0**_SUBPIXEL_BITS / self.mpp) - 2 ** (_SUBPIXEL_BITS - 1)).astype(np.int32)
        if line_um is None:
            cv2.fillPoly(layer, [corners], value, cv2.LINE_AA, _SUBPIXEL_BITS)
        else:
            thickness = max(1, round(line_um / self.mpp))
            cv2.polylines(layer, [corners], True, value, thickness, cv2.LINE_AA, _SUBPIXEL_BITS)

    def add_nuclei(self, layer: Layer, chromatin: float = 0.35) -> None:
        """Stain what is drawn on `layer` (255 is one dye unit of haematoxylin) with clumped chromatin."""
        nuclei = unit(layer)
        self.eosin *= 1 - 0.45 * np.minimum(nuclei, 1)
        self.haematoxylin += nuclei * (1.25 + chromatin * self.noise(1.4))

    def add_cells(self, points: Array, radius_um: tuple[float, float], grey: tuple[float, float]) -> None:
        """Round nuclei of random size and darkness at `points`."""
        layer, count = self.layer(), len(points)
        radius = self.words.between(*radius_um, count)
        flat = self.words.between(0.75, 1.0, count)
        self.ellipses(
            layer,
            points,
            radius,
            radius * flat,
            self.words.between(0, np.pi, count),
            self.words.between(*grey, count),
        )
        self.add_nuclei(layer)

    def deform(self, amplitude_um: float, scale_um: float) -> None:
        """Bend everything by a smooth displacement, which turns drawn shapes into grown ones."""
        column, row = np.meshgrid(np.arange(self.cols, dtype=np.float32), np.arange(self.rows, dtype=np.float32))
        column += (amplitude_um / self.mpp) * self.noise(scale_um)
        row += (amplitude_um / self.mpp) * self.noise(scale_um)
        self.haematoxylin = _look_up(self.haematoxylin, column, row, cv2.BORDER_REFLECT)
        self.eosin = _look_up(self.eosin, column, row, cv2.BORDER_REFLECT)


def lattice_noise(words: Words, rows: int, cols: int, scale_um: float, mpp: float) -> Map:
    """Cubic value noise on a lattice of `scale_um`: [rows, cols], mean 0, standard deviation about 1."""
    down, across = (int(np.ceil(size * mpp / scale_um)) + 2 for size in (rows, cols))
    nodes = words.between(-4.0, 4.0, down, across).astype(np.float32)
    size = (round(across * scale_um / mpp), round(down * scale_um / mpp))
    how = cv2.INTER_CUBIC if scale_um > mpp else cv2.INTER_AREA
    return np.asarray(cv2.resize(nodes, size, interpolation=how)[:rows, :cols] * 0.6, np.float32)


def unit(layer: Layer) -> Map:
    """An 8-bit layer as float32 in [0, 1]."""
    return np.asarray(layer * np.float32(1 / 255), np.float32)


def _look_up(source: Map, column: Map, row: Map, border: int) -> Map:
    return np.asarray(cv2.remap(source, column, row, cv2.INTER_LINEAR, borderMode=border), np.float32)


def ramp(values: Map, low: float, high: float) -> Map:
    """0 below `low`, 1 above `high`, linear between."""
    return np.asarray(np.clip((values - low) / (high - low), 0, 1), np.float32)


def mix(ground: Map, above: float | Map, cover: Map) -> Map:
    """`above` where `cover` is 1, `ground` where it is 0, linear between."""
    return np.asarray(ground + cover * (above - ground), np.float32)


class Fibres:
    """A wavy fibre direction over a field: `texture()` along it [rows, cols] and `angle(points)` in radians.

    The coordinate across the fibres is a rotated axis bent by noise; fibres are a periodic noise picture that
    is stretched along the other axis.
    """

    def __init__(self, field: Field, bend_um: float, stretch: float) -> None:
        self.field = field
        self.stretch = stretch
        turn = float(field.words.between(0, np.pi))
        column, row = np.meshgrid(np.arange(field.cols), np.arange(field.rows))
        x, y = (column * field.mpp).astype(np.float32), (row * field.mpp).astype(np.float32)
        bend = bend_um * field.noise(90.0) + 0.25 * bend_um * field.noise(28.0)
        self.along: Map = np.asarray(np.cos(turn) * x + np.sin(turn) * y, np.float32)
        self.across: Map = np.asarray(np.cos(turn) * y - np.sin(turn) * x + bend, np.float32)

    def texture(self, width_um: float) -> Map:
        """Fibres `width_um` wide: noise of mean 0 and standard deviation about 1."""
        picture = self.field.words.between(-1.0, 1.0, 256, 256).astype(np.float32)
        picture = cv2.GaussianBlur(np.tile(picture, (2, 2)), (0, 0), 0.7)[128:384, 128:384]
        picture = np.roll(picture / picture.std(), (128, 128), (0, 1))
        return _look_up(picture, self.along / (width_um * self.stretch), self.across / width_um, cv2.BORDER_WRAP)

    def angle(self, points: Array) -> Array:
        """Direction of the fibres at `points`: the level lines of the coordinate across them."""
        across, below = np.array([4.0, 0.0]), np.array([0.0, 4.0])  # µm
        right = self.field.at(self.across, points + across) - self.field.at(self.across, points - across)
        down = self.field.at(self.across, points + below) - self.field.at(self.across, points - below)
        return np.arctan2(-right, down)
