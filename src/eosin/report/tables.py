"""The tables of a run page: probe results with their differences, the slides, the recipe with its marks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin import figures
from eosin.evaluation.statistics import is_shown
from eosin.marks import MARKS, leaves
from eosin.report.page import Child, Html, Section, element, joined, number, picture, table

# A page of thousands of slides would be neither small nor read: this many of each kind are shown, the
# rest counted.
SHOWN_SLIDES = 60
SHOWN_FAILURES = 40

Results = Sequence[dict[str, Any]]


def probe_section(results: Results, comparisons: Results, captions: dict[str, str]) -> Section:
    """One table for each task, metric, split and protocol: a row a model, then the paired differences.

    `results` and `comparisons` are records as in results.json; `captions` may say under a task's name
    what it is.
    """
    groups: dict[str, dict[tuple[str, ...], list[dict[str, Any]]]] = {}
    for row in results:
        kind = tuple(str(row.get(name) or "") for name in ("metric", "split", "protocol"))
        groups.setdefault(str(row.get("task") or "task"), {}).setdefault(kind, []).append(row)
    body: list[Html] = []
    for task, kinds in groups.items():
        body.append(element("h3", task))
        if task in captions:
            body.append(element("p", captions[task], class_="note"))
        warnings = dict.fromkeys(text for rows in kinds.values() for row in rows for text in _warnings(row))
        body += [element("p", text, class_="bad") for text in warnings]
        for (metric, split, protocol), rows in kinds.items():
            words = (protocol, metric.replace("_", " "), split and f"{split} split")
            body.append(_probe_table(rows, " · ".join(filter(None, words))))
            wanted = {"task": task, "metric": metric, "protocol": protocol}
            pairs = [
                pair for pair in comparisons if all(pair.get(key, value) == value for key, value in wanted.items())
            ]
            body += [_comparison_table(pairs)] if pairs else []
    how = (
        "Each row is the same probe on another encoder, with its 95 % confidence interval (bar) and the "
        "chance level (dashed): the training was worth something only where the trained encoder lies above "
        "random-init and colour-only, and the interval of the paired difference does not include zero."
    )
    return Section("probe", "Probe", how, body, "no probe results were given.")


def _warnings(row: dict[str, Any]) -> list[str]:
    """What makes a score look better than it is."""
    found = []
    if row.get("shared_groups"):
        groups = f"{number(row['shared_groups'])} {row.get('resampled', 'group')}s"
        found.append(f"A leak: {groups} have samples both in train and in test, so these scores are too high.")
    if row.get("task_in_training") or row.get("patients_in_training"):
        found.append(f"{row.get('model')} was trained on images or patients of this task.")
    return found


def _probe_table(rows: Results, caption: str) -> Html:
    levels = [float(row["chance"]) for row in rows if isinstance(row.get("chance"), int | float)]
    chance = levels[0] if levels else None
    low, high = _axis(rows, chance)
    lines: list[list[Child]] = []
    for row in rows:
        samples = number(row.get("n"))
        if row.get("n_patients"):
            samples += f" of {number(row['n_patients'])} patients"
        limits = f"{_fixed(row.get('ci_low'))} – {_fixed(row.get('ci_high'))}"
        model = str(row.get("model", ""))
        lines.append([model, _fixed(row.get("mean")), limits, _interval(row, low, high, chance), samples])
    if chance is not None:
        lines.append([element("span", "chance", class_="soft"), _fixed(chance), "", "", ""])
    unit = next((f" · intervals over {row['resampled']}s" for row in rows if row.get("resampled")), "")
    head = ["encoder", "mean", "95 % interval", "", "test samples"]
    return table(head, lines, numeric=(1, 2, 4), caption=caption + unit, compact=True)


def _axis(rows: Results, chance: float | None) -> tuple[float, float]:
    """0 to 1 for shares, so that tables compare; else what the rows span."""
    keys = ("mean", "ci_low", "ci_high")
    values = [float(row[key]) for row in rows for key in keys if isinstance(row.get(key), int | float)]
    values += [] if chance is None else [chance]
    if not values or (min(values) >= 0 and max(values) <= 1):
        return 0.0, 1.0
    margin = 0.05 * (max(values) - min(values)) or 1.0
    return min(values) - margin, max(values) + margin


def _interval(row: dict[str, Any], low: float, high: float, chance: float | None) -> Html | str:
    """A small drawing of mean and interval on the axis low..high, 176 × 20 px."""
    mean = row.get("mean")
    if not isinstance(mean, int | float):
        return ""

    def at(value: float) -> str:
        return f"{4 + 168 * (value - low) / (high - low):.1f}"

    parts = [element("line", x1=4, x2=172, y1=10, y2=10, stroke="var(--rule)")]
    if chance is not None:
        place = at(chance)
        parts.append(element("line", x1=place, x2=place, y1=1, y2=19, stroke="var(--second)", stroke_dasharray="3 2"))
    start, end = row.get("ci_low"), row.get("ci_high")
    if isinstance(start, int | float) and isinstance(end, int | float):
        parts.append(element("line", x1=at(start), x2=at(end), y1=10, y2=10, stroke="var(--accent)", stroke_width=3))
    parts.append(element("circle", cx=at(mean), cy=10, r=4, fill="var(--accent)"))
    return element("svg", parts, viewBox="0 0 176 20", class_="interval", aria_hidden="true")


def _comparison_table(pairs: Results) -> Html:
    lines: list[list[Child]] = []
    for pair in pairs:
        low, high = pair.get("ci_low"), pair.get("ci_high")
        verdict: Html | str = ""
        if isinstance(low, int | float) and isinstance(high, int | float):
            a, b = str(pair.get("a")), str(pair.get("b"))
            if not is_shown(low, high, pair.get("p")):
                verdict = element("span", "no difference shown", class_="soft")
            elif low > 0:
                verdict = element("span", f"{a} is better", class_="good")
            else:
                verdict = element("span", f"{b} is better", class_="bad")
        limits = f"{_fixed(low, sign=True)} to {_fixed(high, sign=True)}"
        p = pair.get("p")
        chance = "–" if not isinstance(p, int | float) else "< 0.001" if p < 0.001 else f"{p:.3f}"
        names = f"{pair.get('a')} − {pair.get('b')}"
        lines.append([names, _fixed(pair.get("difference"), sign=True), limits, chance, verdict])
    head = ["paired difference", "difference", "95 % interval", "p", ""]
    return table(head, lines, numeric=(1, 2, 3), compact=True)


def _fixed(value: object, sign: bool = False) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return "–"
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.replace("-", "−")


def slides_section(cohort: Any) -> Section:
    """The slides of a cohort (eosin.slides.Cohort): pictures with the foreground outlined, scale, area;
    failed rows.
    """
    usable = cohort.usable
    failed = cohort.table[cohort.table["status"] != "ok"]
    head = ["", "slide", "size, px", "µm/px", "tissue, mm²", "read by", "status"]
    lines: list[list[Child]] = []
    for n, row in enumerate(usable.head(SHOWN_SLIDES).to_dict("records")):
        size = f"{number(int(row['width']))} × {number(int(row['height']))}"
        reader = " · ".join(str(row[key]) for key in ("vendor", "reader") if row.get(key))
        lines.append(
            [
                _thumbnail(cohort, n, row),
                str(row["slide_id"]),
                size,
                _scale(row),
                number(float(row["tissue_mm2"]), 3),
                reader,
                "ok",
            ]
        )
    for row in failed.head(SHOWN_FAILURES).to_dict("records"):
        words = element("span", f"{row['status']}: {row.get('error') or 'no reason recorded'}", class_="bad")
        lines.append(["", str(row["slide_id"]), "", "", "", "", words])
    area = float(usable["tissue_mm2"].sum()) if len(usable) else 0.0
    counts = f"{number(len(usable))} usable slides with {number(area, 3)} mm² of tissue, "
    counts += f"{number(len(failed))} failed."
    left = len(usable) - min(len(usable), SHOWN_SLIDES) + len(failed) - min(len(failed), SHOWN_FAILURES)
    if left:
        counts += f" {number(left)} of them are not listed here; all are in the cohort file."
    how = (
        "The outline is the tissue that tiles are drawn from: check that it holds the tissue and leaves "
        "out glass, pen and cover-slip edges; a failed slide is not used, and its row says why."
    )
    grid = table(head, lines, numeric=(2, 3, 4))
    return Section("slides", "Slides", how, [element("p", counts), grid] if lines else [], "the cohort has no rows.")


def _scale(row: dict[str, Any]) -> str:
    """One number where pixels are square, two where they are not."""
    x, y = float(row["mpp_x"]), float(row["mpp_y"])
    return f"{x:.4g}" if abs(x - y) < 1e-3 * x else f"{x:.4g} × {y:.4g}"


def _thumbnail(cohort: Any, n: int, row: dict[str, Any]) -> Html:
    image = figures.shrink(np.asarray(cohort.thumbnail(n)), 200)
    shape_um = (float(row["height"]) * float(row["mpp_y"]), float(row["width"]) * float(row["mpp_x"]))
    mask = mask_on(image.shape[:2], shape_um, np.asarray(cohort.foreground(n)), float(cohort.foreground_mpp(n)))
    return picture(figures.outline(image, mask, width_px=2), f"Slide {row['slide_id']}, tissue outlined", 200)


def mask_on(
    shape: tuple[int, ...], shape_um: tuple[float, float], mask: npt.NDArray[np.bool_], mask_mpp: float
) -> npt.NDArray[np.bool_]:
    """A foreground mask laid over a picture of the whole slide: bool of the picture's `shape` (rows,
    columns).

    `shape_um` is the slide's height and width in µm; pixel (r, c) of `mask` covers the square of
    `mask_mpp` µm that starts r and c times that from the slide's corner. Nearest mask pixel to each
    picture pixel's centre.
    """
    at = [
        np.minimum(((np.arange(count) + 0.5) * length / count / mask_mpp).astype(int), limit - 1)
        for count, length, limit in zip(shape, shape_um, mask.shape, strict=True)
    ]
    return np.asarray(mask)[np.ix_(*at)]


def recipe_section(recipe: dict[str, Any], marks: dict[str, str], command: str) -> Section:
    """The command and every value of the recipe with its mark."""
    body: list[Html] = []
    if command:
        body.append(element("pre", element("code", command)))
    if recipe:
        body.append(_meaning(set(marks.values())))
        rows = [
            [
                element("span", key, class_="code"),
                element("span", _plain(value), class_="code"),
                element("span", marks[key], class_="mark", title=MARKS.get(marks[key])) if key in marks else "",
            ]
            for key, value in leaves(recipe).items()
        ]
        body.append(table(["key", "value", "mark"], rows))
    what = "The command that made this run, and every" if command else "Every"
    how = (
        f"{what} setting in force (`eosin train recipe.yaml` takes them from the run folder); the mark "
        "behind a value says where it comes from, and the hashes at the top tell whether another run agrees."
    )
    return Section("recipe", "How to reproduce", how, body, "recipe.yaml was not found and no command was given.")


def _meaning(used: Iterable[str]) -> Html:
    """What the marks stand for, those that this recipe uses."""
    used = set(used)
    items = [
        joined(element("span", mark, class_="mark"), f" {meaning}") for mark, meaning in MARKS.items() if mark in used
    ]
    return element(
        "p", [joined(item, " · " if n < len(items) - 1 else "") for n, item in enumerate(items)], class_="how"
    )


def _plain(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, list | tuple):
        return ", ".join(_plain(item) for item in value)
    return str(value)
