"""Procedural H&E tissue: six kinds of tissue painted as two maps, haematoxylin and eosin.

Why: `eosin quickstart` and the tests need slides whose truth is known and that can be shipped. A painter
fills a `Field` with the dye that binds there; colour, stain, pen and files are the business of
`synthetic_stain` and `synthetic`.

Not a model of disease: the shapes are those of a histology atlas (nuclei 6-8 µm, lymphocytes 6 µm, crypts
60-120 µm, fat cells 50-100 µm), there is nothing to diagnose. A dye unit of 1 is a strongly stained
structure.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from scipy.spatial import cKDTree

from eosin.slides.synthetic_field import Array, Fibres, Field, Layer, lattice_noise, mix, ramp, unit


def paint_stroma(field: Field) -> None:
    """Wavy eosinophilic collagen in bundles with clefts, spindle nuclei along them, capillaries."""
    words = field.words
    fibres = Fibres(field, float(words.between(6, 15)), 7.0)
    loose = float(words.between(-1.3, 0.2))
    bundles = fibres.texture(float(words.between(6, 11)))
    strands, fibrils = fibres.texture(2.0), fibres.texture(0.8)
    body = ramp(bundles + 0.5 * strands + 0.3 * fibrils, loose - 1.2, loose + 0.3)
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
    field.eosin = mix(mix(field.eosin, 0.75, unit(wall)), 0.03, unit(lumen)) + 1.05 * unit(blood) * unit(lumen)
    field.haematoxylin = mix(field.haematoxylin, 0.02, unit(lumen))
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
    membrane = np.maximum(membrane, ramp(-corner, -5.5, -3.0))
    strand = 0.55 + 0.15 * field.noise(3.0)
    field.eosin = np.asarray(np.maximum(membrane * strand, residue), np.float32) + 0.01
    field.haematoxylin = np.asarray(0.10 * membrane + 0.4 * residue, np.float32)
    points = field.scatter(30.0, 0.5)
    near = field.at(wall, points)
    points = points[(near < 2.4) & words.chance(0.55, len(points))]
    layer, count = field.layer(), len(points)
    slope = [field.at(wall, points + d) - field.at(wall, points - d) for d in (np.array([2.0, 0]), np.array([0, 2.0]))]
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
    body = ramp(0.8 * streaks + pools + 0.25 * wisps, -1.6, 2.6)
    thread = ramp(0.5 * streaks + threads + 0.5 * wisps + 0.4 * pools, 0.7, 2.4)
    field.haematoxylin = (dense * (0.25 + 1.2 * body + 1.1 * thread)).astype(np.float32)
    field.eosin = (dense * pink * (0.10 + 0.30 * body + 0.40 * thread)).astype(np.float32)
    points = field.scatter(26.0, 0.5)
    points = points[field.at(field.noise(60.0), points) > float(words.between(0.9, 1.5))]
    bodies = field.layer()
    radius = words.between(4.2, 6.5, len(points))
    field.ellipses(bodies, points, radius, radius * 0.85, words.between(0, np.pi, len(points)), 255)
    field.eosin = mix(field.eosin, 0.32, unit(bodies))
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
    """Crypts in a lamina: basal elongated nuclei, pale cytoplasm, goblet vacuoles, a lumen."""
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
    field.eosin = mix(field.eosin, 0.50 + 0.07 * grain, cover)
    field.haematoxylin = mix(field.haematoxylin, 0.30 + 0.05 * grain, cover)
    field.eosin = mix(mix(field.eosin, 0.07, mucin), 0.02, holes) + 0.25 * unit(rim)
    field.haematoxylin = mix(mix(field.haematoxylin, 0.13, mucin), 0.02, holes)
    field.add_nuclei(nuclei, 0.3)
    field.deform(0.6, 6.0)


def _lamina(field: Field) -> None:
    """Loose pink tissue with round and spindle cells, the ground between crypts."""
    words = field.words
    weave = field.noise(7.0, 2)
    field.eosin = np.asarray(ramp(weave, -1.4, 0.2) * (0.40 + 0.10 * weave), np.float32) + 0.04
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

    def place(t: Array, share: float, inset_um: Array | float) -> Array:
        wave = 1 + sum(weight[k] * np.cos((k + 2) * t + phase[k]) for k in range(3))
        r = radius * share * wave - inset_um
        x, y = r * np.cos(t) * stretch, r * np.sin(t) / stretch
        return centre + np.stack([np.cos(turn) * x - np.sin(turn) * y, np.sin(turn) * x + np.cos(turn) * y], axis=1)

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
    field.ellipses(nuclei, points, long_um, words.between(1.8, 2.5, count), radial, words.between(165, 250, count))
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
    """Fill `field` with `tissue` (a key of `PAINTERS`); how well a dye takes differs by place."""
    PAINTERS[tissue](field)
    field.haematoxylin *= np.float32(field.words.between(0.65, 1.3))
    field.eosin *= np.float32(field.words.between(0.6, 1.35))
