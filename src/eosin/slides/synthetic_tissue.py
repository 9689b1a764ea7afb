"""Procedural H&E tissue: six kinds of tissue painted as two maps, haematoxylin and eosin, in micrometres.

Why: `eosin quickstart` and the tests need slides whose truth is known and that can be shipped. A painter fills a
`Field` with the dye that binds there; colour, stain, pen and files are the business of `synthetic`. All sizes are in
µm and all randomness is drawn on µm lattices, so one seed gives the same tissue at any µm/px.

Not a model of disease: the shapes are those of a histology atlas (sizes: nuclei 6-8 µm, lymphocytes 6 µm, crypts
60-120 µm, fat cells 50-100 µm), there is nothing to diagnose. Arrays are float32 in "dye units": 1 is a strongly
stained structure, that is an optical density of about 1 in the dye's strongest channel at average staining.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from eosin.randomness import Words

Map = npt.NDArray[np.float32]
Layer = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]

_SUBPIXEL_BITS = 4


class Field:
    """An empty rectangle of tissue of `rows` x `cols` pixels at `mpp`: `haematoxylin` and `eosin` are [rows, cols].

    `depth_um(points)` tells how deep inside its region a point lies, so that a painter can leave out the crypts that
    the region's border would cut.
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
            total += 0.5**octave * lattice_noise(
                self.words, self.rows, self.cols, scale_um / 2**octave, self.mpp
            )
        return total

    def scatter(self, spacing_um: float, jitter: float = 0.3) -> Array:
        """Points of a shifted, jittered hexagonal lattice over the field and a margin: [N, 2] as (x, y) in µm."""
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
        """Fill ellipses with half axes `long_um`, `short_um` (µm), the long one at `angle` (radians), grey `value`."""
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
        corners = np.rint(points * (2.0**_SUBPIXEL_BITS / self.mpp) - 2 ** (_SUBPIXEL_BITS - 1)).astype(
            np.int32
        )
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
        column, row = np.meshgrid(
            np.arange(self.cols, dtype=np.float32), np.arange(self.rows, dtype=np.float32)
        )
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


def _ramp(values: Map, low: float, high: float) -> Map:
    """0 below `low`, 1 above `high`, linear between."""
    return np.asarray(np.clip((values - low) / (high - low), 0, 1), np.float32)


def _mix(below: Map, above: float | Map, cover: Map) -> Map:
    return np.asarray(below + cover * (above - below), np.float32)


class Fibres:
    """A wavy fibre direction over a field: `texture()` along it [rows, cols] and `angle(points)` in radians.

    The coordinate across the fibres is a rotated axis bent by noise; fibres are a periodic noise picture that is
    stretched along the other axis.
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
        return _look_up(
            picture, self.along / (width_um * self.stretch), self.across / width_um, cv2.BORDER_WRAP
        )

    def angle(self, points: Array) -> Array:
        """Direction of the fibres at `points`: the level lines of the coordinate across them."""
        step = 4.0
        right = self.field.at(self.across, points + [step, 0]) - self.field.at(
            self.across, points - [step, 0]
        )
        down = self.field.at(self.across, points + [0, step]) - self.field.at(self.across, points - [0, step])
        return np.arctan2(-right, down)


def paint_stroma(field: Field) -> None:
    """Wavy eosinophilic collagen in bundles with clefts, spindle nuclei along the fibres, a few capillaries."""
    words = field.words
    fibres = Fibres(field, float(words.between(6, 15)), 7.0)
    loose = float(words.between(-1.3, 0.2))
    bundles = fibres.texture(float(words.between(6, 11)))
    strands, fibrils = fibres.texture(2.0), fibres.texture(0.8)
    body = _ramp(bundles + 0.5 * strands + 0.3 * fibrils, loose - 1.2, loose + 0.3)
    field.eosin = body * (0.58 + 0.09 * bundles + 0.10 * strands + 0.09 * fibrils).clip(0.05, 1.4) + 0.07
    field.haematoxylin = 0.05 + 0.05 * body
    points = field.scatter(float(words.between(19, 34)), 0.5)
    layer, count = field.layer(), len(points)
    field.ellipses(
        layer,
        points,
        words.between(4.5, 7.5, count),
        words.between(0.9, 1.7, count),
        fibres.angle(points) + words.between(-0.15, 0.15, count),
        words.between(130, 235, count),
    )
    field.add_nuclei(layer)
    _capillaries(field, 0.35)
    field.deform(0.5, 5.0)


def _capillaries(field: Field, share: float) -> None:
    """Small vessels: an empty lumen with a few red cells (strong eosin) and flat nuclei in the wall."""
    words = field.words
    points = field.scatter(110.0, 0.45)
    points = points[words.chance(share, len(points)) & (field.depth_um(points) > 12)]
    lumen, wall, blood, nuclei = field.layer(), field.layer(), field.layer(), field.layer()
    for centre in points:
        radius = float(words.between(5, 13))
        turn, flat = float(words.between(0, np.pi)), float(words.between(0.5, 0.9))
        field.ellipses(wall, centre[None], radius + 1.6, radius * flat + 1.6, turn, 255)
        field.ellipses(lumen, centre[None], radius, radius * flat, turn, 255)
        spots = centre + words.between(-0.6, 0.6, 7, 2) * radius * flat
        field.ellipses(blood, spots, 2.9, 2.6, 0, words.between(160, 255, 7))
        around = words.between(0, 2 * np.pi, 3)
        rim = centre + (radius * (0.5 + flat / 2) + 1) * np.stack([np.cos(around), np.sin(around)], axis=1)
        field.ellipses(nuclei, rim, 4.2, 1.4, around + np.pi / 2, 200)
    field.eosin = _mix(_mix(field.eosin, 0.75, unit(wall)), 0.03, unit(lumen)) + 1.05 * unit(blood) * unit(
        lumen
    )
    field.haematoxylin = _mix(field.haematoxylin, 0.02, unit(lumen))
    field.add_nuclei(nuclei)


def paint_lymphocytes(field: Field) -> None:
    """Sheets of small round dark nuclei with hardly any cytoplasm."""
    words = field.words
    field.eosin = float(words.between(0.2, 0.42)) + 0.07 * field.noise(5.0, 3)
    field.haematoxylin = 0.15 + 0.03 * field.noise(5.0, 2)
    points = field.scatter(float(words.between(7.6, 10.5)), 0.26)
    crowd = field.at(field.noise(45.0, 2), points)
    points = points[crowd + words.between(-0.8, 0.8, len(points)) > float(words.between(-1.7, -0.4))]
    field.add_cells(points, (2.6, 3.4), (170, 255))
    large = field.scatter(30.0, 0.5)
    large = large[words.chance(0.3, len(large))]
    field.add_cells(large, (3.6, 4.6), (80, 120))
    np.maximum(field.eosin, 0.02, out=field.eosin)
    field.deform(0.35, 5.0)


def paint_fat(field: Field) -> None:
    """Large empty vacuoles between thin membranes, flat nuclei where membranes meet."""
    words = field.words
    size_um = float(words.between(50, 85))
    step = max(field.mpp, 1.0)
    rows, cols = (int(np.ceil(size * field.mpp / step)) for size in (field.rows, field.cols))
    column, row = np.meshgrid(np.arange(cols), np.arange(rows))
    grid = np.stack([column, row], axis=-1) * step  # [rows, cols, 2]
    wobble = np.stack([lattice_noise(words, rows, cols, 30.0, step) for _ in range(2)], axis=-1) * 2.0
    centres = field.scatter(size_um, 0.30)
    distance, _ = cKDTree(centres).query(grid + wobble, k=3)
    wall = ((distance[..., 1] - distance[..., 0]) / 2).astype(np.float32)  # µm to the membrane
    corner = ((distance[..., 2] - distance[..., 0]) / 2).astype(np.float32)
    wall, corner = (cv2.resize(part, (field.cols, field.rows)) for part in (wall, corner))
    thick = float(words.between(0.7, 2.2)) + 0.35 * field.noise(20.0)
    residue = float(words.between(0.0, 1.0)) ** 2 * (0.12 + 0.02 * field.noise(25.0, 2))
    membrane = np.asarray(np.clip((thick - wall) / 0.9 + 0.5, 0, 1), np.float32)
    membrane = np.maximum(membrane, _ramp(-corner, -5.5, -3.0))
    strand = 0.55 + 0.15 * field.noise(3.0)
    field.eosin = np.asarray(np.maximum(membrane * strand, residue), np.float32) + 0.01
    field.haematoxylin = np.asarray(0.10 * membrane + 0.4 * residue, np.float32)
    points = field.scatter(30.0, 0.5)
    near = field.at(wall, points)
    points = points[(near < 2.4) & words.chance(0.55, len(points))]
    layer, count = field.layer(), len(points)
    slope = [
        field.at(wall, points + d) - field.at(wall, points - d)
        for d in (np.array([2.0, 0]), np.array([0, 2.0]))
    ]
    along = np.arctan2(slope[1], slope[0]) + np.pi / 2
    field.ellipses(layer, points, words.between(3, 5.5, count), words.between(1.2, 2.0, count), along, 210)
    field.add_nuclei(layer)
    field.deform(0.5, 6.0)


def paint_mucus(field: Field) -> None:
    """Pale bluish streaks and pools with a few floating cells."""
    words = field.words
    fibres = Fibres(field, float(words.between(12, 24)), 5.0)
    streaks = fibres.texture(float(words.between(5, 9)))
    threads, wisps = fibres.texture(2.0), fibres.texture(0.9)
    pools = field.noise(60.0, 3)
    dense, pink = float(words.between(0.07, 0.30)), float(words.between(0.5, 2.0))
    body = _ramp(0.8 * streaks + pools + 0.25 * wisps, -1.6, 2.6)
    thread = _ramp(0.5 * streaks + threads + 0.5 * wisps + 0.4 * pools, 0.7, 2.4)
    field.haematoxylin = (dense * (0.25 + 1.2 * body + 1.1 * thread)).astype(np.float32)
    field.eosin = (dense * pink * (0.10 + 0.30 * body + 0.40 * thread)).astype(np.float32)
    points = field.scatter(26.0, 0.5)
    points = points[field.at(field.noise(60.0), points) > float(words.between(0.9, 1.5))]
    bodies = field.layer()
    radius = words.between(4.2, 6.5, len(points))
    field.ellipses(bodies, points, radius, radius * 0.85, words.between(0, np.pi, len(points)), 255)
    field.eosin = _mix(field.eosin, 0.32, unit(bodies))
    field.add_cells(points + words.between(-1, 1, *points.shape), (2.4, 3.6), (130, 220))
    field.deform(0.5, 6.0)


def paint_necrosis(field: Field) -> None:
    """Granular pink debris with ghosts of cells, dark dust of broken nuclei and a few shrunken ones."""
    words = field.words
    grain, lumps = field.noise(2.4, 2), field.noise(7.0, 2)
    clouds = field.noise(55.0, 2)
    field.eosin = (0.50 + 0.07 * clouds + 0.08 * lumps + 0.13 * grain).clip(0.02, 1.4)
    field.haematoxylin = (float(words.between(0.05, 0.22)) + 0.05 * lumps + 0.05 * clouds).clip(0.01, 1)
    ghosts = field.scatter(15.0, 0.4)
    ghosts = ghosts[words.chance(0.5, len(ghosts))]
    layer = field.layer()
    field.ellipses(layer, ghosts, 5.4, 4.6, words.between(0, np.pi, len(ghosts)), 255)
    field.ellipses(layer, ghosts, 4.2, 3.5, words.between(0, np.pi, len(ghosts)), 60)
    field.eosin = np.asarray(field.eosin * (1 - 0.30 * unit(layer)), np.float32)
    dust = field.scatter(float(words.between(4.6, 6.5)), 0.5)
    where = field.at(field.noise(24.0, 2), dust) + words.between(-0.7, 0.7, len(dust))
    dust = dust[where > float(words.between(0.5, 1.1))]
    field.add_cells(dust, (0.5, 1.3), (110, 250))
    dead = field.scatter(24.0, 0.5)
    field.add_cells(dead[words.chance(0.3, len(dead))], (1.6, 2.6), (150, 255))
    field.deform(0.3, 5.0)


def paint_glands(field: Field) -> None:
    """Crypts side by side: basal elongated nuclei around pale cytoplasm, goblet vacuoles and a lumen, in a lamina."""
    words = field.words
    _lamina(field)
    diameter = float(words.between(68, 110))
    goblets = float(words.between(0.1, 1.0))
    centres = field.scatter(diameter * 1.04, 0.09)
    drift = [field.at(field.noise(2.5 * diameter), centres) for _ in range(2)]
    centres = centres + 0.16 * diameter * np.stack(drift, axis=1)
    centres = centres[field.depth_um(centres) > 0.2 * diameter]
    body, pale, lumen, rim, nuclei = (field.layer() for _ in range(5))
    for centre in centres:
        _crypt(field, centre, diameter, goblets, (body, pale, lumen, rim, nuclei))
    cover, holes, mucin = unit(body), unit(lumen), unit(pale)
    grain = field.noise(2.2)
    field.eosin = _mix(field.eosin, 0.50 + 0.07 * grain, cover)
    field.haematoxylin = _mix(field.haematoxylin, 0.30 + 0.05 * grain, cover)
    field.eosin = _mix(_mix(field.eosin, 0.07, mucin), 0.02, holes) + 0.25 * unit(rim)
    field.haematoxylin = _mix(_mix(field.haematoxylin, 0.13, mucin), 0.02, holes)
    field.add_nuclei(nuclei, 0.3)
    field.deform(0.6, 6.0)


def _lamina(field: Field) -> None:
    """Loose pink tissue with round and spindle cells, the ground between crypts."""
    words = field.words
    weave = field.noise(7.0, 2)
    field.eosin = np.asarray(_ramp(weave, -1.4, 0.2) * (0.40 + 0.10 * weave), np.float32) + 0.04
    field.haematoxylin = 0.07 + 0.02 * weave
    points = field.scatter(11.5, 0.4)
    field.add_cells(points[words.chance(0.55, len(points))], (2.3, 3.3), (140, 245))


def _crypt(field: Field, centre: Array, diameter: float, goblets: float, layers: tuple[Layer, ...]) -> None:
    """Draw one crypt: outline r(t) with a few harmonics, stretched along a random axis."""
    body, pale, lumen, rim, nuclei = layers
    words = field.words
    radius = diameter / 2 * float(words.between(0.74, 1.0))
    turn, stretch = float(words.between(0, np.pi)), float(words.between(1.0, 1.3))
    phase, weight = words.between(0, 2 * np.pi, 3), words.between(0.0, 0.05, 3)

    def place(t: Array, share: npt.ArrayLike, inset_um: npt.ArrayLike) -> Array:
        wave = 1 + sum(weight[k] * np.cos((k + 2) * t + phase[k]) for k in range(3))
        r = radius * share * wave - inset_um
        x, y = r * np.cos(t) * stretch, r * np.sin(t) / stretch
        return centre + np.stack(
            [np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], axis=1
        )

    t = np.linspace(0, 2 * np.pi, 49)[:-1]
    hollow = float(words.between(0.16, 0.42))
    field.polygon(body, place(t, 1.0, 0.0), 255)
    field.polygon(rim, place(t, 1.0, -0.6), 200, 1.2)
    field.polygon(lumen, place(t, hollow, words.between(-1.5, 1.5, 48)), 255)
    count = int(2 * np.pi * radius / 5.2)
    around = (np.arange(count) + words.between(-0.35, 0.35, count)) * (2 * np.pi / count)
    long_um = words.between(3.2, 4.8, count)
    inset = 1.6 + long_um + words.between(0, 1, count) ** 2 * float(words.between(1.0, 7.0))
    points = place(around, 1.0, inset)
    inner = place(around, 1.0, inset + 3.0)
    radial = np.arctan2(*(points - inner).T[::-1])
    field.ellipses(
        nuclei, points, long_um, words.between(1.8, 2.5, count), radial, words.between(165, 250, count)
    )
    cups = int(2 * np.pi * radius / 10.5)
    spread = (np.arange(cups) + words.between(-0.3, 0.3, cups)) * (2 * np.pi / cups)
    spread = spread[words.chance(goblets, cups)]
    room = radius * (1 - hollow) - 11.0
    if room > 5 and len(spread):
        middle = place(spread, 1.0, 10.5 + room / 2)
        outward = np.arctan2(*(place(spread, 1.0, 9.0) - middle).T[::-1])
        wide = np.minimum(4.4, 0.42 * np.pi * (radius - 10.5 - room / 2) * 2 / cups)
        field.ellipses(pale, middle, room * 0.48, wide, outward, 235)


PAINTERS: dict[str, Callable[[Field], None]] = {
    "glands": paint_glands,
    "stroma": paint_stroma,
    "lymphocytes": paint_lymphocytes,
    "fat": paint_fat,
    "mucus": paint_mucus,
    "necrosis": paint_necrosis,
}


def paint_tissue(tissue: str, field: Field) -> None:
    """Fill `field` with `tissue` (a key of `PAINTERS`); how well each dye takes differs from place to place."""
    PAINTERS[tissue](field)
    field.haematoxylin *= np.float32(field.words.between(0.65, 1.3))
    field.eosin *= np.float32(field.words.between(0.6, 1.35))
