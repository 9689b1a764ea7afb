"""What the weights behind a run have learned from: the tasks, patients and slides of whatever it started from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eosin.models.exported import CONFIG_FILE, read_export
from eosin.models.zoo import licence_of
from eosin.training.prepare import open_run


def seen_before(start: str) -> dict[str, Any]:
    """What the weights that `start` names have been trained on, as far as a run or an export of ours says so: `tasks`,
    `patients` and `slides`; `licence`: of the published weights at the beginning of the chain. Empty where nobody says.
    """
    path = Path(start).expanduser()
    if (path / "identity.json").is_file():
        _, recipe, identity = open_run(path)
        before = identity.get("start_seen") or seen_before(recipe.start)
        found = joined(before, {name: identity.get(name) or [] for name in ("tasks", "patients", "slides")})
    elif path.is_dir() and (path / CONFIG_FILE).is_file() and (block := read_export(path)) is not None:
        licence = json.loads((path / CONFIG_FILE).read_text())["eosin"].get("start_licence")
        before = {"licence": licence} if licence else {}
        found = joined(before, block.training.model_dump() if block.training else {})
    else:
        return {} if (licence := licence_of(start)) is None else {"licence": licence}
    return found


def joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`before` (`seen_before`) and the `tasks`, `patients` and `slides` of `now`."""
    names = ("tasks", "patients", "slides")
    return before | {name: sorted({str(x) for x in [*before.get(name, []), *now.get(name, [])]}) for name in names}
