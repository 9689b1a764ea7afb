"""What `eosin doctor` found as plain values for machines; pictures are left out, NaN becomes null."""

from __future__ import annotations

import dataclasses
from typing import Any

from eosin.files import finite
from eosin.report.doctor import Diagnosis
from eosin.tiles import TilesConfig
from eosin.tiles.speed import ScaleSpeed

_RATES = ("cpu_s", "per_core", "acceptance", "kept_per_core", "decode_share")


def as_values(told: Diagnosis) -> dict[str, Any]:
    """Nested dicts and lists that json.dumps takes; the words are the field names of the classes."""
    values: dict[str, Any] = finite(_plain(told))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, TilesConfig):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {one.name: getattr(value, one.name) for one in dataclasses.fields(value) if one.name != "picture"}
        if isinstance(value, ScaleSpeed):
            fields |= {name: getattr(value, name) for name in _RATES}
        return {name: _plain(item) for name, item in fields.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: _plain(item) for name, item in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
