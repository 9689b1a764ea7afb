"""Bags whose label hangs on a few tiles: the mean of a bag says nothing about it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from eosin.randomness import Words

WIDTH = 8


def planted(number: int, positive: bool) -> np.ndarray:
    """float32 [N, WIDTH]: noise of 20 to 30 tiles, two of which carry a sign.

    Numbers 0 and 1 are high together in one tile of a positive bag, and in two tiles of a negative one.
    """
    words = Words(number, "bag")
    tiles = 0.3 * words.normal(20 + int(words.integers(11)), WIDTH)
    # The sums are the same in both kinds of bag, so a mean over tiles is blind to it.
    tiles[:2, :2] = [[4.0, 4.0], [0.0, 0.0]] if positive else [[4.0, 0.0], [0.0, 4.0]]
    return tiles[words.permutations(len(tiles))].astype(np.float32)


def write_h5(path: Path, tiles: np.ndarray, encoder: str = "toy") -> None:
    """A file in TRIDENT's layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=tiles).attrs["encoder"] = encoder
        file.create_dataset("coords", data=np.zeros((len(tiles), 2), dtype=np.int64)).attrs["patch_size"] = 256


@pytest.fixture
def cohort(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """make(slides, columns) -> (features folder, label table): planted bags, two slides a patient."""

    def make(slides: int = 40, columns: str = "split") -> tuple[Path, Path]:
        lines = ["slide,patient,mut" + (",split" if "split" in columns else "")]
        for number in range(slides):
            positive = bool((number // 2) % 2)
            write_h5(tmp_path / "features" / f"S{number}.h5", planted(number, positive))
            split = "test" if number % 20 >= 14 else "train"
            cells = [f"S{number}", f"P{number // 2}", "mut" if positive else "wild"]
            lines.append(",".join([*cells, *([split] if "split" in columns else [])]))
        (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
        return tmp_path / "features", tmp_path / "labels.csv"

    return make
