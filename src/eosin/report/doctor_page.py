"""The page of `eosin doctor`: one file with problems first, then the slide or the cohort, its speed, the machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from eosin.files import PathLike, write_text
from eosin.report.doctor import VISIT_TILES, Diagnosis, ScaleReport, SlideReport
from eosin.report.doctor_problems import MEANING
from eosin.report.doctor_words import (
    Line,
    Rows,
    cohort_lines,
    counted,
    how_measured,
    how_served,
    level_rows,
    machine_lines,
    offer_rows,
    sample_rows,
    scale_rows,
    slide_lines,
    speed_rows,
    starvation_lines,
)
from eosin.report.page import Html, Section, duration, element, figure, joined, number, picture, render_page, table

_MARKS = {"stops": "var(--bad)", "slow": "var(--accent)", "look": "var(--second)"}
_SHORT = 28  # letters of a cell that stay in one line
_GRID = (
    "display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,20rem),1fr));gap:1.2rem 2rem;align-items:start"
)


class Part(NamedTuple):
    """A part of a bar: its share of the longest bar, and its colour."""

    share: float
    colour: str


class Bar(NamedTuple):
    """A labelled bar of one or several parts, and the words behind it."""

    label: str
    parts: tuple[Part, ...]
    words: str


def write_doctor_page(told: Diagnosis, path: PathLike) -> None:
    """Write the page; OutputError where it cannot be. One file, no network, no scripts."""
    sections = [_problems(told)]
    if told.cohort is None:
        sections += [_slide(told.slides[0]), _levels(told.slides[0], told), _speed(told.slides[0], told)]
    else:
        sections += [_cohort(told), _scales(told), _sample(told), _errors(told), _copies(told)]
    sections += [_starvation(told), _machine(told)]
    name = told.target.rsplit("/", 1)[-1]
    write_text(path, render_page(f"{name} · eosin doctor", _header(told, name), sections, {}))


def _header(told: Diagnosis, name: str) -> Html:
    facts = [
        (
            "Examined",
            "one slide" if told.cohort is None else f"a cohort of {sum(told.cohort.status.values()):,} slides",
        ),
        ("Problems", counted(_weights(told)) or "none"),
        ("Tiles", f"{told.tiles.size_px} px at {told.tiles.scales_text} µm/px"),
        ("Recipe", told.recipe or "none named"),
        ("Took", duration(told.seconds)),
    ]
    entries = [element("div", element("dt", key), element("dd", value)) for key, value in facts]
    return element(
        "header",
        element("h1", name),
        element("p", f"doctor · page written {time.strftime('%Y-%m-%d %H:%M %Z')}", class_="status"),
        element("dl", entries, class_="facts"),
    )


def _weights(told: Diagnosis) -> dict[str, int]:
    words = [MEANING[problem.weight] for problem in told.problems]
    return {word: words.count(word) for word in dict.fromkeys(words)}


def _problems(told: Diagnosis) -> Section:
    items = [
        element(
            "li",
            element("div", _words(problem.what), " ", _badge(problem.weight)),
            element("div", "→ ", _words(problem.remedy), class_="soft"),
            style="margin:0 0 .9rem;max-width:52rem",
        )
        for problem in told.problems
    ]
    how = "The most important first; under each what to do about it."
    body = [element("ol", items, style="padding-left:1.4rem;margin:0")] if items else [element("p", "None found.")]
    return Section("problems", "Problems", how if items else "", body)


def _badge(weight: str) -> Html:
    style = f"color:{_MARKS[weight]};border-color:currentColor;white-space:nowrap"
    return element("span", MEANING[weight], class_="mark", style=style)


def _slide(slide: SlideReport) -> Section:
    overview = figure(
        picture(slide.picture, f"overview of {slide.name} with the outline of its tissue", max(slide.picture.shape)),
        "green: what counts as tissue",
    )
    body = element("div", overview, _lines(slide_lines(slide)), style=_GRID)
    how = "Tiles are drawn from inside the green line only; everything else follows from the scale."
    return Section("slide", "Slide", how, [body])


def _levels(slide: SlideReport, told: Diagnosis) -> Section:
    body = [
        _table(level_rows(slide.anatomy.levels), "Stored levels"),
        _table(scale_rows(slide.scales), "What wanted scales are read from"),
    ]
    return Section("levels", "Levels and scales", how_served(told.tiles.size_px), body)


def _speed(slide: SlideReport, told: Diagnosis) -> Section:
    body = [_table(speed_rows(slide.scales, VISIT_TILES)), *_where_time_goes(slide.scales)]
    return Section("speed", "Reading speed", how_measured(told), body)


def _where_time_goes(scales: Sequence[ScaleReport]) -> list[Html]:
    """CPU time of a tile in parts, one bar a scale and way of reading."""
    measured = [
        (f"{scale.serving.mpp:g} µm/px{words}", one)
        for scale in scales
        for words, one in (("", scale.one), (f", {VISIT_TILES} of a place", scale.visits))
        if one.tiles
    ]
    if not measured:
        return []
    longest = max(one.cpu_s / one.tiles for _, one in measured)
    bars = []
    for label, one in measured:
        decode = min(one.decode_s or 0.0, one.read_s)
        seconds = (decode, one.read_s - decode, one.hsv_s + one.draw_s)
        colours = ("var(--accent)", "var(--second)", "var(--soft)")
        parts = tuple(Part(value / one.tiles / longest, colour) for value, colour in zip(seconds, colours, strict=True))
        bars.append(Bar(label, parts, f"{1e3 * one.cpu_s / one.tiles:.2f} ms"))
    told = any(one.decode_s is not None for _, one in measured)
    names = [("decoding", "var(--accent)")] if told else []
    names += [("other reading" if told else "reading with decoding", "var(--second)"), ("place and HSV", "var(--soft)")]
    return [element("h3", "CPU time of one tile"), _legend(names), _bars(bars)]


def _cohort(told: Diagnosis) -> Section:
    facts = told.cohort
    assert facts is not None
    most = max((part.slides for part in facts.mpp), default=1)
    bars = [
        Bar(f"{part.low:g} – {part.high:g} µm/px", (Part(part.slides / most, "var(--accent)"),), f"{part.slides:,}")
        for part in facts.mpp
    ]
    histogram = element("div", element("h3", "Finest µm/px of the slides", style="margin-top:0"), _bars(bars))
    body = element("div", _lines(cohort_lines(told)), histogram, style=_GRID)
    return Section(
        "cohort", "Cohort", "By the cohort file; slides that could not be indexed count by status only.", [body]
    )


def _scales(told: Diagnosis) -> Section:
    how = f"Slides fine and large enough for each scale. {how_measured(told)} Speeds are those of the slides measured."
    return Section("scales", "Scales", how, [_table(offer_rows(told))])


def _sample(told: Diagnosis) -> Section:
    cards = [
        figure(
            picture(slide.picture, f"overview of {slide.name} with the outline of its tissue", 320),
            element("b", slide.name),
            element("br"),
            f"{slide.anatomy.reader}, {max(slide.mpp_x, slide.mpp_y):.4g} µm/px, {slide.tissue_mm2:.3g} mm²",
        )
        for slide in told.slides
    ]
    grid = "display:grid;grid-template-columns:repeat(auto-fill,minmax(9rem,1fr));gap:1.2rem"
    body = [_table(sample_rows(told)), element("div", cards, style=grid)] if cards else []
    how = "Drawn by the names of the slides, so the same ones every time; tiles a second of one core."
    return Section("sample", "Slides measured", how, body, "no slide with tissue could be measured.")


def _errors(told: Diagnosis) -> Section:
    facts = told.cohort
    assert facts is not None
    rows = [
        [f"{group.number:,}", _cell(group.words), _cell(group.remedy), _cell(group.example)] for group in facts.errors
    ]
    body = [table(["slides", "that …", "what to do", "for example"], rows, numeric=(0,))] if rows else []
    return Section("errors", "Slides that failed", "Grouped by what went wrong.", body, "none failed.")


def _copies(told: Diagnosis) -> Section:
    facts = told.cohort
    assert facts is not None
    rows = [
        [what, f"{len(names):,}", ", ".join(names[:8]) + (" …" if len(names) > 8 else "")]
        for what, names in (
            ("without tissue", facts.without_tissue),
            ("nearly all tissue", facts.all_tissue),
            ("files not found", facts.missing),
        )
        if names
    ]
    rows += [["the same slide", f"{len(names):,}", " = ".join(names[:8])] for names in facts.duplicates[:50]]
    body = [table(["what", "slides", "which"], rows, numeric=(1,))] if rows else []
    how = "The same slide: equal in bytes, pixels, scale and every pixel of the tissue mask."
    return Section("suspicious", "Suspicious slides", how, body, "none without tissue, nearly all tissue, or twice.")


def _starvation(told: Diagnosis) -> Section:
    fate = told.starvation
    how = (
        "What the recipe's step takes (an estimate) against what reading gives (measured). A run on a GPU reads in "
        "other processes while it computes; it waits where they are slower."
    )
    if fate is None:
        return Section("starvation", "Would a GPU starve?", how, [], "no recipe was named (--recipe NAME --gpu H100).")
    body = [_lines(starvation_lines(fate))]
    used = min(fate.workers, fate.cores)
    rates = [
        (f"needed by {fate.gpus} × {fate.gpu}", fate.need.tiles_s, "var(--ink)"),
        ("one core", fate.per_core, "var(--accent)"),
        (f"{fate.workers} processes (default)", fate.per_core * used, "var(--accent)"),
        (f"all {fate.cores} cores", fate.per_core * fate.cores, "var(--accent)"),
        (f"all, {fate.visit_tiles} of a place", fate.per_core_visits * fate.cores, "var(--second)"),
    ]
    rates = [rate for at, rate in enumerate(rates) if at != 2 or used > 1]
    known = [rate for rate in rates if rate[1] == rate[1]]
    if fate.need.why is None and len(known) > 1:
        longest = max(value for _, value, _ in known) or 1.0
        bars = [Bar(label, (Part(value / longest, colour),), number(value, 3)) for label, value, colour in known]
        body += [element("h3", "Tiles a second"), _bars(bars)]
    if fate.advice:
        advice = element("ul", [element("li", _words(line)) for line in fate.advice], style="max-width:52rem")
        body += [element("h3", "What helps, the cheapest first"), advice]
    return Section("starvation", "Would a GPU starve?", how, body)


def _machine(told: Diagnosis) -> Section:
    return Section("machine", "Machine", "Where this was measured.", [_lines(machine_lines(told.machine))])


def _table(told: Rows, caption: str = "") -> Html:
    return table(told.head, [[_cell(text) for text in row] for row in told.rows], told.numeric, caption)


def _cell(text: str) -> Html:
    """A cell that a phone does not squeeze: what is short stays in a line, sentences get some width."""
    style = "white-space:nowrap" if len(text) <= _SHORT else "display:inline-block;min-width:10rem"
    return element("span", text, style=style)


def _words(text: str) -> Html:
    """Text in which no option of a command is broken at its dashes."""
    words = (
        element("span", word, style="white-space:nowrap") if word.startswith("--") else word for word in text.split(" ")
    )
    return joined(*(part for word in words for part in (word, " ")))


def _lines(lines: Sequence[Line]) -> Html:
    """Labels and values, two columns that stay readable on a phone."""
    rows = [
        (
            element("dt", label, class_="soft", style="font-size:.85rem"),
            element("dd", value, style="margin:0;overflow-wrap:anywhere"),
        )
        for label, value in lines
    ]
    style = "display:grid;grid-template-columns:minmax(5.5rem,auto) 1fr;gap:.45rem 1.2rem;margin:0;align-items:baseline"
    return element("dl", [part for row in rows for part in row], style=style)


def _legend(names: Sequence[tuple[str, str]]) -> Html:
    entries = [
        element("span", element("span", class_="swatch", style=f"background:{colour};border-radius:3px"), f" {name}")
        for name, colour in names
    ]
    return element("div", entries, class_="legend")


def _bars(bars: Sequence[Bar]) -> Html:
    """Bars below each other: label, bar, words."""
    cells = []
    for bar in bars:
        shares = [
            element("span", style=f"width:{100 * part.share:.2f}%;background:{part.colour};height:.8rem")
            for part in bar.parts
            if part.share > 0
        ]
        cells.append(element("span", bar.label, style="font-size:.85rem"))
        cells.append(element("span", shares, style="display:flex;gap:1px;border-radius:3px;overflow:hidden"))
        cells.append(element("span", bar.words, class_="number", style="font-size:.85rem"))
    style = "display:grid;grid-template-columns:minmax(6rem,max-content) 1fr auto;gap:.35rem .9rem;align-items:center"
    return element("div", cells, style=f"{style};max-width:52rem")
