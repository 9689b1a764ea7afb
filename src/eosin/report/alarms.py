"""The part of a run page that shows the alarms of a run (`training/alarms.py`), as RUN/alarms.jsonl has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eosin.report.page import Child, Section, element, number, table

TITLES = {
    "collapse": "collapse",
    "data_stall": "data\u00a0stall",
    "no_tiles": "no\u00a0tiles",
    "non_finite": "loss\u00a0not\u00a0finite",
}


def alarms_section(rows: Sequence[dict[str, Any]]) -> Section:
    """A row a kind of alarm: what it is, the steps at which it was raised, whether the run stopped, its last words."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        kinds.setdefault((str(row.get("alarm")), str(row.get("action"))), []).append(row)
    lines: list[list[Child]] = []
    for (alarm, action), raised in kinds.items():
        first, last = (number(raised[at].get("step")) for at in (0, -1))
        stopped = action == "stop"
        lines.append(
            [
                TITLES.get(alarm, alarm),
                first if len(raised) == 1 else f"{first}\u00a0–\u00a0{last}",
                element("span", "stopped", class_="bad") if stopped else f"warned\u00a0{len(raised)}\u00a0×",
                str(raised[-1].get("text") or ""),
            ]
        )
    how = (
        "What the run noticed about itself by the rules of the recipe's `watch` group, in the words of the last time; "
        "a warning that goes on holding is repeated at most ten times over the length of the run."
    )
    body = [table(["alarm", "at step", "the run", ""], lines, numeric=(1,))] if lines else []
    return Section("alarms", "Alarms", how, body, "none was raised.")
