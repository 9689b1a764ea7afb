"""Label maps of a few reported images, kept beside the results so that pages can lay them over the images."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.evaluation.outcome import Ints
from eosin.evaluation.tasks import Task
from eosin.evaluation.tasks.images import ImageFiles
from eosin.evaluation.tasks.masks import IGNORE, Masks
from eosin.files import atomic_folder, write_json

SHOWN = 12
INDEX_FILE = "overlays.json"
_GREY = (160, 160, 160)


def chosen_images(rows: Ints) -> list[int]:
    """At most SHOWN of the reported images, spread evenly over them in task order."""
    rows = np.sort(rows)
    picks = np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).round().astype(int))
    return rows[picks].tolist()


def class_colours(classes: int) -> list[tuple[int, int, int]]:
    """RGB of each class: black for the first (the background), the others around the colour circle."""
    hues = [(number * 0.381966 + 0.55) % 1.0 for number in range(classes - 1)]
    bright = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, 0.95)) for hue in hues]
    return [(0, 0, 0), *bright]  # type: ignore[list-item]


def write_label_maps(folder: Path, task: Task, maps: Mapping[int, npt.NDArray[np.uint8]]) -> None:
    """Write `maps` (uint8 [H, W] by sample number) and the truth beside them as palette PNGs, with an index that says
    what each belongs to. The folder appears whole or not at all.
    """
    colours = class_colours(len(task.classes))
    entries: list[dict[str, Any]] = []
    assert isinstance(task.targets, Masks)
    with atomic_folder(folder) as place:
        for number, (row, label_map) in enumerate(sorted(maps.items())):
            files = {"prediction": f"{number:02d}_prediction.png", "truth": f"{number:02d}_truth.png"}
            _write_palette(place / files["prediction"], label_map, colours)
            _write_palette(place / files["truth"], task.targets[row], colours)
            image = str(task.samples.paths[row].resolve()) if isinstance(task.samples, ImageFiles) else None
            entries.append({"sample": str(task.ids[row]), "row": row, "image": image, **files})
        write_json(
            place / INDEX_FILE,
            {
                "task": task.name,
                "classes": [
                    {"value": value, "name": name, "colour": list(colour)}
                    for value, (name, colour) in enumerate(zip(task.classes, colours, strict=True))
                ],
                "ignored": {"value": IGNORE, "colour": list(_GREY)},
                "images": entries,
            },
        )


def _write_palette(path: Path, label_map: npt.NDArray[np.uint8], colours: list[tuple[int, int, int]]) -> None:
    table = np.zeros((256, 3), dtype=np.uint8)
    table[: len(colours)] = colours
    table[IGNORE] = _GREY
    picture = Image.fromarray(np.ascontiguousarray(label_map), mode="P")
    picture.putpalette(table.tobytes())
    picture.save(path, format="PNG", optimize=False)
