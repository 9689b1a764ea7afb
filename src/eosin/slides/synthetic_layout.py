"""Where what lies on a synthetic slide: the piece of tissue, its regions, the pen.

Drawn on cells of about 4 µm, so that the layout of a seed is the same at any µm/px. Paints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from eosin.randomness import Words
from eosin.slides.synthetic_field import Array, Map, lattice_noise
from eosin.slides.synthetic_tissue import PAINTERS

TISSUES: tuple[str, ...] = (*PAINTERS, "background", "pen")

Labels = npt.NDArray[np.uint8]

_CELL_UM = 4.0
_PEN_LABEL = 0.5


@dataclass(frozen=True)
class Layout:
    """Maps [n, n] over square cells of `cell_px` pixels, `cell_um` µm.

    `edge_um` is positive inside the tissue and about the distance to its border; `region` numbers the
    partition of the whole square; `tissues[region]` indexes `TISSUES`; `pen` is the cover by the pen's dye in
    0..1.
    """

    cell_px: int
    cell_um: float
    edge_um: Map
    region: npt.NDArray[np.int64]
    tissues: tuple[int, ...]
    pen: Map

    def labels(self, size_px: int, downsample: int) -> Labels:
        """Class index of each square of `downsample` pixels: pen over tissue over background."""
        painted = np.asarray(self.tissues)[self.region]
        classes = np.where(self.edge_um > 0, painted, TISSUES.index("background"))
        classes = np.where(self.pen > _PEN_LABEL, TISSUES.index("pen"), classes).astype(np.uint8)
        middle = (np.arange(size_px // downsample) + 0.5) * downsample
        cell = (middle / self.cell_px).astype(int)
        return np.asarray(classes[np.ix_(cell, cell)], np.uint8)


def draw_layout(size_px: int, mpp: float, words: Words) -> Layout:
    """A smooth blob cut into noise-warped Voronoi regions; each tissue gets its share of the area."""
    cell_px = max(1, round(_CELL_UM / mpp))
    cell_um, size_um = cell_px * mpp, size_px * mpp
    n = -(-size_px // cell_px)
    x, y = np.meshgrid((np.arange(n) + 0.5) * cell_um, (np.arange(n) + 0.5) * cell_um)  # [n, n] µm

    centre = size_um * words.between(0.46, 0.54, 2)
    angle = np.arctan2(y - centre[1], x - centre[0])
    phase, weight = words.between(0, 2 * np.pi, 4), words.between(0.0, 0.05, 4)
    wave = sum(weight[k] * np.cos((k + 2) * angle + phase[k]) for k in range(4))
    edge = 0.42 * size_um * (1 + wave) - np.hypot(x - centre[0], y - centre[1])
    edge += 0.018 * size_um * lattice_noise(words, n, n, size_um / 9, cell_um)
    edge += 7.0 * lattice_noise(words, n, n, 45.0, cell_um)

    spacing = float(np.clip(size_um / 5.2, 60.0, 400.0))
    ticks = np.arange(0.5, np.ceil(size_um / spacing) + 0.5)
    sites = np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2)  # [R, 2]
    sites = (sites + words.between(-0.42, 0.42, *sites.shape)) * spacing
    warp = [
        0.13 * spacing * lattice_noise(words, n, n, spacing / 1.6, cell_um)
        + 0.035 * spacing * lattice_noise(words, n, n, spacing / 6, cell_um)
        for _ in range(2)
    ]
    _, region = cKDTree(sites).query(np.stack([x + warp[0], y + warp[1]], axis=-1))

    area = np.bincount(region[edge > 0].ravel(), minlength=len(sites))
    rounds = -(-len(sites) // len(PAINTERS))
    tissues = np.zeros(len(sites), int)
    tissues[np.argsort(-area, kind="stable")] = words.permutations(len(PAINTERS), rounds).ravel()[: len(sites)]
    pen = _draw_pen(x, y, centre, size_um, words)
    return Layout(cell_px, cell_um, edge.astype(np.float32), region, tuple(tissues.tolist()), pen)


def _draw_pen(x: Array, y: Array, centre: Array, size_um: float, words: Words) -> Map:
    """One or two felt-pen strokes along the border of the tissue, over glass and tissue."""
    cell_um = float(x[0, 1] - x[0, 0])
    cover = np.zeros(x.shape, np.float32)
    for _ in range(1 + int(words.integers(2))):
        width_um = size_um * float(words.between(0.022, 0.04))
        start, sweep = float(words.between(0, 2 * np.pi)), float(words.between(0.5, 1.1))
        turn = start + np.linspace(0, sweep, 40)
        radius = size_um * (float(words.between(0.36, 0.45)) + 0.02 * np.sin(turn * 5 + float(words.between(0, 6))))
        path = centre + radius[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        stroke = np.zeros(x.shape, np.uint8)
        corners = np.rint(path / cell_um * 16).astype(np.int32)
        cv2.polylines(stroke, [corners], False, 255, max(1, round(width_um / cell_um)), cv2.LINE_AA, 4)
        cover = np.maximum(cover, stroke.astype(np.float32) / 255)
    return np.asarray(cv2.GaussianBlur(cover, (0, 0), 1.2), np.float32)
