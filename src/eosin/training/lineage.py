"""What the weights behind a run have learned from: the tasks, patients and slides of whatever it started from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eosin.models.exported import CONFIG_FILE, read_export
from eosin.models.zoo import licence_of

NAMES = ("tasks", "patients", "slides")


def seen_before(start: str) -> dict[str, Any]:
    """What the weights that `start` names have been trained on, as far as a run or an export of ours says so: `tasks`,
    `patients` and `slides`; `licence`: of the published weights at the beginning of the chain. Empty where nobody says.

    A run asks once, when it begins, and keeps the answer in identity.json (`start_seen`): what it started from may be
    gone later, what it has learned from stays. Raises ResumeError, WeightsError for a start that cannot be read.
    """
    from eosin.training.prepare import open_run  # which begins runs, and asks here

    path = Path(start).expanduser()
    if (path / "identity.json").is_file():
        _, recipe, identity = open_run(path)
        found = joined(told_before(identity, recipe.start), identity)
    elif path.is_dir() and (path / CONFIG_FILE).is_file() and (block := read_export(path)) is not None:
        licence = json.loads((path / CONFIG_FILE).read_text())["eosin"].get("start_licence")
        before = {"licence": licence} if licence else {}
        found = joined(before, block.training.model_dump() if block.training else {})
    else:
        return {} if (licence := licence_of(start)) is None else {"licence": licence}
    return found


def seen_until_now(start: str, known: dict[str, Any] | None, now: dict[str, Any]) -> dict[str, Any]:
    """What the weights of a run have learned from that `now`, its identity, does not say: `start_seen`.

    known: the identity of the start that is gone on from, None for a run that begins. What that one had learned from
    counts as well where it was another thing (--accept-changed).
    """
    if known is None:
        return seen_before(start)
    before = told_before(known, start)
    return before if all(known.get(name) == now.get(name) for name in NAMES) else joined(before, known)


def told_before(identity: dict[str, Any], start: str) -> dict[str, Any]:
    """`start_seen` of a run's identity; runs of old did not write it down, there `start` is asked."""
    return dict(identity["start_seen"]) if "start_seen" in identity else seen_before(start)


def joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """`before` (`seen_before`) and the `tasks`, `patients` and `slides` of `now`."""
    every = {name: [*(before.get(name) or []), *(now.get(name) or [])] for name in NAMES}
    return before | {name: sorted({str(one) for one in found}) for name, found in every.items()}
