"""The part of a run page that shows where CLS looks: attention maps laid over their tiles, the run's first beside its
latest.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from eosin import figures
from eosin.report.page import Section, element, figure, number, picture
from eosin.report.pictures import Sample
from eosin.runs import ATTENTION, RunFolder

CELL_PX = 112  # side of one head's picture


@dataclass(frozen=True)
class Attention:
    """RUN/pictures/attention_first.npz or _latest.npz (`training/attention.py`), of the first T tiles of the sample."""

    step: int
    maps: npt.NDArray[np.uint8]  # [T, 1 + heads, h, w], the mean over heads first, each from 0 to its own peak
    peak: npt.NDArray[np.float32]  # [T, 1 + heads]

    @classmethod
    def read(cls, path: Path) -> Attention | None:
        """None where there is none, or none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(int(data["step"]), data["maps"], data["peak"])
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def times_even(self, n: int) -> float:
        """The peak of tile n's mean map, in multiples of what each patch would get if all got the same."""
        return float(self.peak[n, 0]) * self.maps.shape[2] * self.maps.shape[3]


def attention_section(run: RunFolder, sample: Sample) -> Section:
    """Tile, mean map of the run's first and of its latest look, and each head's latest map."""
    looks = [look for name in ATTENTION if (look := Attention.read(run.pictures / f"{name}.npz")) is not None]
    rows = []
    for n in range(min(len(some) for some in (sample.tiles, *(look.maps for look in looks))) if looks else 0):
        tile, heads = sample.tiles[n], len(looks[-1].maps[n]) - 1
        parts = [figure(picture(tile, f"Tile {n + 1}"), sample.name(n))]
        for look in looks:
            words = f"mean of heads, step {number(look.step)}, peak {look.times_even(n):.0f} × even"
            drawn = picture(heat_over(tile, look.maps[n, 0]), f"Attention on tile {n + 1}, {words}")
            parts.append(figure(drawn, words))
        columns = -(-heads // 2)
        sheet = figures.contact_sheet(
            [heat_over(tile, one) for one in looks[-1].maps[n, 1:]], columns, CELL_PX, gap_px=2, background=255
        )
        words = f"each of {heads} heads, step {number(looks[-1].step)}"
        parts.append(figure(picture(sheet, f"Attention on tile {n + 1}, {words}", columns * CELL_PX), words))
        rows.append(element("div", parts, class_="view", style=f"--locals: {columns / 2}fr"))
    how = (
        "What CLS takes from each patch in the teacher's last block, from nothing (dark) to the most in that picture "
        "(yellow): while it learns it should come to follow the tissue; the same few patches in every tile mean that "
        "it stores something there instead."
    )
    return Section("attention", "Attention", how, rows, "the run has not kept attention maps yet.")


def heat_over(tile: figures.Image, weights: npt.NDArray[np.uint8]) -> figures.Image:
    """A tile [S, S, 3] in grey under a map uint8 [h, w] in colour, a square a patch: uint8 [S, S, 3]."""
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    squares = cv2.resize(weights, tile.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    heat = cv2.cvtColor(cv2.applyColorMap(squares, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB).astype(np.float32)
    return np.round(0.4 * grey + 0.6 * heat).astype(np.uint8)
