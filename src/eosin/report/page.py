"""HTML by small functions that escape by themselves: a page as sections, each with a sentence on how to
read it.

Strings are text and are escaped; only what these functions return (`Html`) goes in as markup. The page
needs no other file and no network, and its content security policy makes the browser refuse both. Knows
nothing of runs.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib import resources

import numpy as np

from eosin import figures

_WITHOUT_END = frozenset({"br", "img", "link", "meta"})


class Html(str):
    """Markup that is safe as it stands."""


Child = str | Iterable[str]


def element(tag: str, *children: Child, **attributes: str | int | float | None) -> Html:
    """One element; text children and attribute values are escaped, attributes that are None left out.

    `class_` and `for_` write class and for, and an underscore within a name writes a hyphen.

    >>> element("p", "a < b", class_="lead")
    '<p class="lead">a &lt; b</p>'
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    if tag in _WITHOUT_END:
        return Html(f"<{tag}{written}>")
    return Html(f"<{tag}{written}>{joined(*children)}</{tag}>")


def joined(*children: Child) -> Html:
    """The children one after another, text escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(html.escape(child))
        else:
            parts.append(joined(*child))
    return Html("".join(parts))


def picture(
    image: figures.Image, alt: str, most_px: int = 224, lossless: bool = False, class_: str | None = None
) -> Html:
    """An <img> with its pixels inside: uint8 RGB [H, W, 3], shrunk to at most `most_px`; JPEG, or PNG if
    `lossless`.
    """
    image = figures.shrink(np.asarray(image), most_px)
    data, mime = (figures.png(image), "image/png") if lossless else (figures.jpeg(image), "image/jpeg")
    height, width = image.shape[:2]
    return element(
        "img",
        src=figures.data_uri(data, mime),
        alt=alt,
        width=width,
        height=height,
        class_=class_,
        loading="lazy",
    )


def figure(content: Html, *caption: Child, class_: str | None = None) -> Html:
    """A picture with the words under it."""
    return element("figure", content, element("figcaption", *caption), class_=class_)


def table(
    head: Sequence[Child],
    rows: Iterable[Sequence[Child]],
    numeric: Sequence[int] = (),
    caption: str = "",
    compact: bool = False,
) -> Html:
    """A table; columns numbered in `numeric` are right-aligned in tabular figures, a `compact` one is as
    wide as its text.
    """

    def line(tag: str, cells: Sequence[Child], **attributes: str) -> Html:
        marks = [("number" if at in numeric else None) for at in range(len(cells))]
        return element(
            "tr",
            [element(tag, cell, class_=mark, **attributes) for cell, mark in zip(cells, marks, strict=True)],
        )

    parts = [element("caption", caption)] if caption else []
    parts.append(element("thead", line("th", head, scope="col")))
    parts.append(element("tbody", [line("td", row) for row in rows]))
    return element("div", element("table", parts), class_="scroll compact" if compact else "scroll")


@dataclass
class Section:
    """One part of the page: `how` says in one sentence how to read it; without a `body`, `missing` says
    why.
    """

    key: str
    title: str
    how: str = ""
    body: list[Html] = field(default_factory=list)
    missing: str = ""


def render_page(title: str, header: Html, sections: Sequence[Section], captions: dict[str, str]) -> str:
    """The whole document. Sections without a body are left out and named at its end with their reason.

    `captions` may hold a further sentence for a section under its key.
    """
    shown = [section for section in sections if section.body]
    hidden = [section for section in sections if not section.body]
    links = [element("a", section.title, href=f"#{section.key}") for section in shown]
    parts = [header, element("nav", links, aria_label="Sections")] if links else [header]
    for section in shown:
        words = [element("p", section.how, class_="how")] if section.how else []
        if section.key in captions:
            words.append(element("p", captions[section.key], class_="note"))
        parts.append(
            element(
                "section",
                element("h2", section.title, id=f"{section.key}-title"),
                words,
                section.body,
                id=section.key,
                aria_labelledby=f"{section.key}-title",
            )
        )
    if hidden:
        reasons = [element("li", element("b", section.title), ": ", section.missing) for section in hidden]
        parts.append(element("section", element("h2", "Not on this page"), element("ul", reasons), id="missing"))
    style = (resources.files("eosin.report") / "page.css").read_text(encoding="utf-8")
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Html(style)),
    )
    return "<!doctype html>\n" + element("html", head, element("body", element("main", parts)), lang="en") + "\n"


def number(value: object, digits: int = 4) -> str:
    """A number for reading: thousands separated, `digits` significant ones, "–" for what is not a number.

    >>> number(1234567), number(0.00012345), number(None)
    ('1,234,567', '0.0001234', '–')
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        return "–"
    whole = isinstance(value, int) or abs(value) >= 10**digits
    return (f"{value:,.0f}" if whole else f"{value:.{digits}g}").replace("-", "−")


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> duration(75), duration(7260), duration(200000)
    ('1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    whole = round(seconds)
    for unit, size, smaller, part in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"
