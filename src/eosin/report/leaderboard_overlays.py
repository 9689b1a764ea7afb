"""Segmentation on a leaderboard: the image, the truth and what each model says, side by side.

Reads the label maps that a result keeps beside it (`RESULTS/segmentation/TASK/PROTOCOL/MODEL-HASH`), for the images
that all of the shown models have.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.errors import EosinError
from eosin.evaluation.kept import kept_task
from eosin.evaluation.leaderboard import Column, Entry
from eosin.evaluation.tasks.images import read_image
from eosin.figures import shrink
from eosin.report.page import Html, element, figure, joined, picture

SHOWN_MODELS = 4
SHOWN_IMAGES = 5
SIDE_PX = 224
_TINT = 0.55
_GRID = "grid-template-columns:repeat(auto-fill,minmax(min(11rem,45%),1fr));gap:.6rem"

Pixels = npt.NDArray[np.uint8]


def overlays(column: Column) -> list[Html]:
    """Images with their label maps, the best models first; nothing for tasks without any."""
    if column.kind != "segmentation":
        return []
    kept = {name: found for name, entry in column.entries.items() if (found := _index(entry)) is not None}
    shown = list(kept)[:SHOWN_MODELS]
    if not shown:
        return []
    first = kept[shown[0]]
    others = [{str(image["sample"]): image for image in kept[name]["images"]} for name in shown]
    samples = [str(image["sample"]) for image in first["images"]]
    samples = [sample for sample in samples if all(sample in own for own in others)]
    picks = np.unique(np.linspace(0, len(samples) - 1, min(SHOWN_IMAGES, len(samples))).round().astype(int))
    colours = _palette(first)
    rows = []
    for sample in (samples[pick] for pick in picks):
        image = _image(column.entries[shown[0]], others[0][sample])
        parts = [] if image is None else [figure(picture(image, f"{sample}, image", SIDE_PX), "image")]
        try:
            for number, name in enumerate(shown):
                folder = _folder(column.entries[name])
                if number == 0:
                    parts.append(_map(folder / others[0][sample]["truth"], image, colours, f"{sample}, truth", "truth"))
                said = folder / others[number][sample]["prediction"]
                parts.append(_map(said, image, colours, f"{sample}, {name}", name))
        except (OSError, KeyError, ValueError):
            continue  # a file that is gone or damaged takes its row with it
        head = element("p", sample, class_="how small", style="margin:1.2rem 0 .4rem")
        rows.append(joined(head, element("div", parts, class_="tiles", style=_GRID)))
    if not rows:
        return []
    words = "Label maps of the first run. Grey: pixels that do not count."
    return [element("h3", "Overlays"), element("p", words, class_="how"), _legend(first), *rows]


def _folder(entry: Entry) -> Path:
    row = entry.row
    return entry.folder / "segmentation" / str(row["task"]) / str(row["protocol"]) / str(row.get("model_hash") or "")


def _index(entry: Entry) -> dict[str, Any] | None:
    """overlays.json of a result; None without one that can be used."""
    try:
        found = json.loads((_folder(entry) / "overlays.json").read_text(encoding="utf-8"))
        known = [image for image in found["images"] if {"sample", "truth", "prediction"} <= set(image)]
        return {**found, "images": known} if known and found["classes"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _palette(index: Mapping[str, Any]) -> npt.NDArray[np.uint8]:
    """Colour of each value, uint8 [256, 3]."""
    colours = np.zeros((256, 3), dtype=np.uint8)
    for told in (*index["classes"], index.get("ignored") or {"value": 255, "colour": [160, 160, 160]}):
        colours[int(told["value"]) % 256] = told["colour"]
    return colours


def _image(entry: Entry, told: Mapping[str, Any]) -> Pixels | None:
    """Pixels of a sample: its file, or what the task reads when it is opened again; None where neither is there."""
    try:
        if told.get("image"):
            return read_image(Path(str(told["image"])))
        task = kept_task(entry.folder, str(entry.row["task"]))
        return None if task.images is None else np.asarray(task.images[int(told["row"])])
    except (EosinError, OSError, ValueError, IndexError, KeyError):
        return None


def _map(path: Path, image: Pixels | None, colours: Pixels, alt: str, caption: str) -> Html:
    """A label map laid over its image: background shows the image alone, other classes are tinted and edged."""
    with Image.open(path) as opened:
        labels = np.asarray(opened)
    if labels.ndim != 2:
        raise ValueError(f"{path} is no label map")
    tint = colours[labels]
    if image is None or image.shape[:2] != labels.shape:
        return figure(picture(tint, alt, SIDE_PX, lossless=True), caption)
    seen = (labels > 0)[..., None]
    mixed = np.where(seen, (1 - _TINT) * image + _TINT * tint, image).astype(np.uint8)
    mixed[_edges(labels)] = tint[_edges(labels)]
    return figure(picture(shrink(mixed, SIDE_PX), alt, SIDE_PX), caption)


def _edges(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.bool_]:
    """Pixels of a class above 0 that touch another class, bool [H, W]."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[1:] |= labels[1:] != labels[:-1]
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    return edge & (labels > 0)


def _legend(index: Mapping[str, Any]) -> Html:
    marks = []
    for told in index["classes"][1:]:
        colour = ",".join(str(int(part)) for part in told["colour"])
        style = f"background:rgb({colour});width:.9rem;height:.9rem;display:inline-block;border-radius:2px"
        marks.append(element("span", element("i", style=style), f" {told['name']}"))
    return element("p", marks, class_="legend")
