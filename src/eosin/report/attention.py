"""The part of a run page that shows where CLS looks: attention maps laid over their tiles, the run's first beside its
latest.
"""

from __future__ import annotations

import math
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
from eosin.training.attention import OCTAVE

HEAD_PX = 112  # side of one head's picture
FULL_COLOUR = math.log2(3)  # octaves
MOST_PAINT = 0.75  # of a pixel; the rest is the tile in grey
MORE, LESS = np.array([[200, 20, 50], [20, 80, 200]], dtype=np.float32)


@dataclass(frozen=True)
class Attention:
    """RUN/pictures/attention_first.npz or _latest.npz (`training/attention.py`), of the first T tiles of the sample."""

    step: int
    octaves: npt.NDArray[np.float32]  # [T, 1 + heads, h, w], the mean over heads first: log2 of times an even share

    @classmethod
    def read(cls, path: Path) -> Attention | None:
        """None where there is none, or none that can be read."""
        try:
            with np.load(path, allow_pickle=False) as data:
                return cls(int(data["step"]), (data["maps"].astype(np.float32) - 128) / OCTAVE)
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
            return None

    def mean(self, n: int) -> tuple[npt.NDArray[np.float32], str]:
        """Tile n's map, the mean over heads, and what it is."""
        peak = 2.0 ** float(self.octaves[n, 0].max())
        return self.octaves[n, 0], f"mean of heads, step {number(self.step)}, peak {peak:.2g}\u00a0×\u00a0even"


def attention_section(run: RunFolder, sample: Sample) -> Section:
    """Tile, mean map of the run's first and of its latest look, and each head's latest map."""
    looks = [look for name in ATTENTION if (look := Attention.read(run.pictures / f"{name}.npz")) is not None]
    rows = []
    for n in range(min(len(some) for some in (sample.tiles, *(look.octaves for look in looks))) if looks else 0):
        tile, heads = sample.tiles[n], looks[-1].octaves[n, 1:]
        parts = [figure(picture(tile, f"Tile {n + 1}"), sample.name(n))]
        for octaves, words in (look.mean(n) for look in looks):
            parts.append(figure(picture(painted(tile, octaves), f"Attention on tile {n + 1}, {words}"), words))
        columns = next(c for c in range(1, len(heads) + 1) if c * c >= len(heads) and len(heads) % c == 0)
        sheet = figures.contact_sheet([painted(tile, one) for one in heads], columns, HEAD_PX)
        words = f"each of {len(heads)} heads, step {number(looks[-1].step)}"
        parts.append(figure(picture(sheet, f"Attention on tile {n + 1}, {words}", columns * HEAD_PX), words))
        rows.append(element("div", parts, class_="view", style=f"--locals: {columns / 2}fr"))
    how = (
        "What CLS takes from each patch in the teacher's last block: red is more than an even share, blue is less, "
        "full colour three times more or less. While it learns it should come to tell tissues apart; the same few "
        "patches in every tile mean that it stores something there instead."
    )
    return Section("attention", "Attention", how, rows, "the run has not kept attention maps yet.")


def painted(tile: figures.Image, octaves: npt.NDArray[np.float32]) -> figures.Image:
    """A tile [S, S, 3] in grey with each patch of a map [h, w] in red or blue over it: uint8 [S, S, 3]."""
    grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)[..., None].astype(np.float32)
    squares = cv2.resize(octaves, tile.shape[1::-1], interpolation=cv2.INTER_NEAREST)[..., None]
    share = MOST_PAINT * np.minimum(np.abs(squares) / FULL_COLOUR, 1.0)
    return np.round(grey * (1 - share) + np.where(squares > 0, MORE, LESS) * share).astype(np.uint8)
