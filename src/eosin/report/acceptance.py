"""The part of a run page that shows which slides gave tiles, as RUN/acceptance.parquet has it."""

from __future__ import annotations

import math

from eosin.report.page import Child, Html, Section, element, number, table
from eosin.tiles.acceptance import Acceptance, AcceptanceRow

SHOWN = 20


def acceptance_section(acceptance: Acceptance) -> Section:
    """A row a slide and µm/px, those of which the smallest share was taken first."""
    rows = sorted(acceptance.rows(), key=_worst_first)
    lines: list[list[Child]] = [
        [row.slide, f"{row.mpp:g}", _share(row), *(number(count) for count in row[2:])] for row in rows[:SHOWN]
    ]
    head = ["slide", "µm/px", "share taken", "tiles taken", "no place with tissue", "HSV rule", "unreadable"]
    how = (
        "The share of the tiles read that passed the recipe's HSV rule, worst first: a slide near 0 % costs reading "
        "and may be pen, glass or another stain; a tile that fails is drawn anew on the same slide."
    )
    body: list[Html] = []
    if rows:
        left = f" The first {SHOWN} of {number(len(rows))} rows; all are in acceptance.parquet."
        body = [
            element("p", _summary(acceptance, rows) + (left if len(rows) > SHOWN else "")),
            table(head, lines, numeric=range(1, len(head)), compact=True),
        ]
    return Section("acceptance", "Which slides gave tiles", how, body, "the run has not counted any tiles yet.")


def _worst_first(row: AcceptanceRow) -> tuple[float, float, str, float]:
    share = row.rate if row.taken + row.hsv else -1.0  # nothing could be read
    return share, -sum(row[2:]), row.slide, row.mpp


def _summary(acceptance: Acceptance, rows: list[AcceptanceRow]) -> str:
    """The whole run in a sentence or two."""
    taken, refused = sum(row.taken for row in rows), sum(row.hsv for row in rows)
    gave = {row.slide for row in rows if row.taken}
    never = len({row.slide for row in rows} - gave)
    words = f"{number(taken)} tiles from {number(len(gave))} slide{'s' * (len(gave) != 1)}"
    if taken + refused:
        words += f", {taken / (taken + refused):.0%} of those read"
    words += f"; {number(never)} slide{'s' * (never != 1)} never gave one." if never else "."
    return words + (f" Counted from step {number(acceptance.from_step)} on." if acceptance.from_step else "")


def _share(row: AcceptanceRow) -> Child:
    if math.isnan(row.rate):
        return element("span", "none read", class_="bad")
    text = f"{100 * row.rate:.3g} %"
    return text if row.taken else element("span", text, class_="bad")
