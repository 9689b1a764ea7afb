"""A study small enough for tests, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from .conftest import TINY

LENGTH = ("run.steps", "run.minutes")
SMALL = {key: yaml.safe_load(value) for key, value in (c.split("=", 1) for c in TINY) if key not in LENGTH}
STUDY = {
    "base": "quickstart",
    "set": SMALL,
    "arms": {"kde": None, "no term": {"objective.uniformity": "none"}},
    "seeds": [0, 1],
    "budget_steps": 6,
    "compare": "no term",
}


def write_study(folder: Path, **changes: Any) -> str:
    """A study file like STUDY in `folder`; a key that is None is left out."""
    values = {key: value for key, value in {**STUDY, **changes}.items() if value is not None}
    path = folder / "terms.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)
