"""Under which name a model stands on a leaderboard: short, and told apart from every other one there.

Weights, head and settings decide who is who, not the path. Features that came without a model are known by their
folder, or by the name that the caller gives the folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
FEATURES = "features"
"""What results call a model whose features were given instead of it."""


def display_names(told: Sequence[tuple[Path, Row]], given: Mapping[Path, str]) -> list[str]:
    """Display name of the model of each row; `given`: names of files that hold one model each."""
    keys = [_identity(row, file, given.get(file)) for file, row in told]
    # The same weights seen through two poolings in one protocol are two models; across protocols they are one.
    views: dict[tuple[Any, ...], dict[str, set[str]]] = {}
    for key, (_, row) in zip(keys, told, strict=True):
        views.setdefault(key, {}).setdefault(str(row["protocol_hash"]), set()).add(_view(row))
    split = {key for key, by_protocol in views.items() if any(len(seen) > 1 for seen in by_protocol.values())}
    keys = [(*key, _view(row)) if key in split else key for key, (_, row) in zip(keys, told, strict=True)]
    first: dict[tuple[Any, ...], tuple[Path, Row]] = {}
    for key, (file, row) in zip(keys, told, strict=True):
        first.setdefault(key, (file, row))
    words = {key: given.get(file) or _word(row, file) for key, (file, row) in first.items()}
    short = short_names(words.values())
    names = {key: _join(short[words[key]], row.get("head")) for key, (_, row) in first.items()}
    for tell in (
        _view_words,
        lambda row, file: str(row.get("model_hash") or "")[:6],
        lambda row, file: file.parent.name,
    ):
        for name in {name for name in names.values() if list(names.values()).count(name) > 1}:
            same = [key for key in names if names[key] == name]
            told_apart = [tell(first[key][1], first[key][0]) for key in same]
            if len(set(told_apart)) > 1:
                for key, word in zip(same, told_apart, strict=True):
                    names[key] = _join(name, word)
    seen: dict[str, int] = {}
    for key, name in names.items():
        seen[name] = seen.get(name, 0) + 1
        names[key] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return [names[key] for key in keys]


def _join(name: str, word: Any) -> str:
    return f"{name} · {word}" if word else name


def _word(row: Row, file: Path) -> str:
    return str(file.parent) if row["model"] == FEATURES else str(row["model"]).rstrip("/")


def _identity(row: Row, file: Path, given: str | None) -> tuple[Any, ...]:
    # The hash of features is of one task's samples.
    weights = None if row["model"] == FEATURES else row.get("model_hash")
    return (given or weights or _word(row, file), row.get("head"), row.get("settings_hash"))


def _view(row: Row) -> str:
    return json.dumps(row.get("transform"), sort_keys=True) if isinstance(row.get("transform"), dict) else ""


def _view_words(row: Row, file: Path) -> str:
    told = row.get("transform")
    if not isinstance(told, dict):
        return ""
    size = told.get("input_size")
    return " ".join(filter(None, (str(told.get("pooling") or ""), f"{size} px" if size else "")))


def short_names(models: Iterable[str]) -> dict[str, str]:
    """Each model's shortest trailing part of its path that no other model shares."""
    whole = list(dict.fromkeys(models))
    short = {}
    for model in whole:
        parts = model.split("/")
        tails = ("/".join(parts[-n:]) for n in range(1, len(parts) + 1))
        others = [f"/{other}" for other in whole if other != model]
        short[model] = next((t for t in tails if not any(o.endswith(f"/{t}") for o in others)), model)
    return short
