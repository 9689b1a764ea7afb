"""The page of `eosin index --html`: each slide's thumbnail, the outline of its foreground, its numbers.

One file without scripts or references, for a look at what was taken for tissue before anything is trained
on it.
"""

from __future__ import annotations

import html
from typing import Any

import cv2
import numpy as np
import pandas as pd

from eosin import figures
from eosin.files import PathLike, write_text
from eosin.slides.cohort import Cohort
from eosin.slides.foreground import Mask
from eosin.slides.resample import Pixels

OUTLINE = (0, 150, 60)

_STYLE = """
:root { --page: #fbfaf9; --ink: #23202a; --soft: #6a6472; --rule: #e4e0e3; --bad: #a8321e; }
@media (prefers-color-scheme: dark) {
  :root { --page: #17151b; --ink: #ece8ee; --soft: #a49dab; --rule: #37323e; --bad: #f29380; }
}
body { margin: 2rem auto; max-width: 76rem; padding: 0 1.25rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } p { color: var(--soft); margin: .3rem 0 1.5rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(16rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; border-top: 1px solid var(--rule); padding-top: .7rem; overflow-wrap: anywhere; }
img { max-width: 100%; max-height: 20rem; border-radius: 4px; }
figcaption { font-size: .85rem; color: var(--soft); } figcaption b { color: var(--ink); }
.bad { color: var(--bad); }
"""


def write_page(cohort: Cohort, path: PathLike) -> None:
    """Write the page of all slides of `cohort`, failed ones last; OutputError where it cannot be written."""
    failed = cohort.table[cohort.table["status"] != "ok"]
    cards = [_card(cohort, n, row) for n, row in enumerate(cohort.usable.to_dict("records"))]
    cards += [_failed(row) for row in failed.to_dict("records")]
    counts = f"{len(cohort)} slides, {len(failed)} failed, {cohort.usable['tissue_mm2'].sum():.1f} mm² of tissue"
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>eosin cohort</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>\n<h1>{html.escape(cohort.path.name)}</h1>"
        f"<p>{counts}. Inside the green line is what counts as tissue. Cohort hash {cohort.hash}.</p>\n"
        "<main>\n" + "\n".join(cards) + "\n</main></body></html>\n",
    )


def outlined(thumbnail: Pixels, mask: Mask) -> Pixels:
    """`thumbnail` uint8 [h, w, 3] with the outline of `mask` (bool, any size, same extent) drawn on it."""
    height, width = thumbnail.shape[:2]
    fitted = cv2.resize(mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(fitted, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(cv2.drawContours(thumbnail.copy(), contours, -1, OUTLINE, 1, cv2.LINE_AA))


def _card(cohort: Cohort, n: int, row: dict[Any, Any]) -> str:
    picture = figures.data_uri(figures.jpeg(outlined(cohort.thumbnail(n), cohort.foreground(n))), "image/jpeg")
    numbers = (
        f"{row['width']} × {row['height']} px, {row['mpp_x']:.4g}"
        + (f" × {row['mpp_y']:.4g}" if row["mpp_y"] != row["mpp_x"] else "")
        + f" µm/px, {row['vendor']}<br>{row['tissue_mm2']:.2f} mm² of tissue"
        + (f" ({html.escape(row['foreground_rule'])})" if isinstance(row.get("foreground_rule"), str) else "")
    )
    said = ", ".join(f"{name} {row[name]}" for name in ("patient", "site", "stain") if not pd.isna(row[name]))
    name = html.escape(row["slide_id"])
    return (
        f'<figure><img alt="overview of {name}" src="{picture}">'
        f"<figcaption><b>{name}</b><br>{numbers}{'<br>' if said else ''}{html.escape(said)}"
        "</figcaption></figure>"
    )


def _failed(row: dict[Any, Any]) -> str:
    return (
        f"<figure><figcaption><b>{html.escape(row['slide_id'])}</b><br>"
        f'<span class="bad">{html.escape(str(row["error"]))}</span></figcaption></figure>'
    )
