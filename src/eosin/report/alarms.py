"""The part of a run page that shows the alarms of a run (`training/alarms.py`), as RUN/alarms.jsonl has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eosin.report.page import Child, Section, element, number, table

TITLES = {"collapse": "collapse", "data_stall": "data stall", "no_tiles": "no tiles", "non_finite": "loss not finite"}


def alarms_section(rows: Sequence[dict[str, Any]]) -> Section:
    """A row an alarm: step, what it is, whether the run stopped, and its line."""
    lines: list[list[Child]] = []
    for row in rows:
        stopped = row.get("action") == "stop"
        lines.append(
            [
                number(row.get("step")),
                TITLES.get(str(row.get("alarm")), str(row.get("alarm"))),
                element("span", "stopped", class_="bad") if stopped else "warned",
                str(row.get("text") or ""),
            ]
        )
    how = (
        "What the run noticed about itself, by the rules of the recipe's `watch` group: a warning that goes on holding "
        "is repeated at most ten times over the length of the run."
    )
    body = [table(["step", "alarm", "the run", ""], lines, numeric=(0,))] if lines else []
    return Section("alarms", "Alarms", how, body, "none was raised.")
