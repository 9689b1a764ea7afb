"""How large each model of a leaderboard is and how many slides and tiles it has seen, where that is known.

Parameters: of the zoo, of an exported folder's description, of timm's definition. Slides: of an exported folder, or as
its owners publish them (`published.yaml`). Tiles: of an exported folder. What is not known is None; nothing is
downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from eosin.errors import EosinError
from eosin.evaluation.leaderboard import Board
from eosin.evaluation.published import slides_seen

RANDOM = " (random init)"


class Size(NamedTuple):
    """Number of weights, of training slides and of tiles seen (one seen twice counts twice), None where unknown;
    `slides_from` says who states the slides.
    """

    parameters: int | None
    slides: int | None
    slides_from: str = ""
    tiles: int | None = None


def sizes_of(board: Board) -> dict[str, Size]:
    """Size of every model, by display name; a result that says `parameters` or `slides` itself is believed."""
    found = {}
    for name, word in board.models.items():
        row = board.model_row(name)
        known = size_of(word)
        parameters, slides = row.get("parameters"), row.get("slides")
        found[name] = Size(
            parameters if isinstance(parameters, int) else known.parameters,
            slides if isinstance(slides, int) else known.slides,
            "its results" if isinstance(slides, int) else known.slides_from,
            known.tiles,
        )
    return found


def size_of(word: str) -> Size:
    """Size of the model that `word` means: exported folder, zoo or timm name, with or without " (random init)"."""
    random = word.endswith(RANDOM)
    word = word.removesuffix(RANDOM)
    size = _of_folder(Path(word)) or _of_zoo(word) or _of_timm(word) or Size(None, None)
    return size._replace(slides=None, slides_from="", tiles=None) if random else size


def _of_folder(folder: Path) -> Size | None:
    from eosin.models.exported import CONFIG_FILE, read_export

    try:
        block = read_export(folder) if (folder / CONFIG_FILE).is_file() else None
        if block is None:
            return None
        told = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["eosin"]
    except (EosinError, OSError):
        return None
    from eosin.models.vit import ViT

    slides, tiles = (told.get(key) if isinstance(told.get(key), int) else None for key in ("slides", "tiles"))
    return Size(_count(lambda: ViT(block.encoder)), slides, "its model card" if slides else "", tiles)


def _of_zoo(word: str) -> Size | None:
    from eosin.models.zoo import find_entry

    try:
        entry = find_entry(word)
    except EosinError:
        return None
    if entry is None:
        return None
    told = slides_seen().get(entry.name)
    return Size(entry.parameters, told.slides if told else None, told.source if told else "")


def _of_timm(word: str) -> Size | None:
    import timm

    name = word.removeprefix("timm/")
    if not timm.is_model(name):
        return None
    return Size(_count(lambda: timm.create_model(name, num_classes=0)), None)


def _count(build: Any) -> int | None:
    import torch

    try:
        with torch.device("meta"):
            network = build()
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    return sum(value.numel() for name, value in network.named_parameters() if name != "mask_token")
