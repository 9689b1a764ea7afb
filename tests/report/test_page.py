"""Markup that escapes by itself."""

from __future__ import annotations

import base64

import cv2
import numpy as np

from eosin.report.page import Section, duration, element, joined, number, picture, render_page, table


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "a < b & c")
    assert inner == "<b>a &lt; b &amp; c</b>"
    assert element("p", inner, ["<i>", inner], title='"x"', class_="y", for_=None) == (
        f'<p title="&quot;x&quot;" class="y">{inner}&lt;i&gt;{inner}</p>'
    )
    assert joined("<", inner) == f"&lt;{inner}"


def test_table_cells() -> None:
    found = table(["name", "n"], [["<x>", "1"]], numeric=(1,), caption="a & b")
    assert "<caption>a &amp; b</caption>" in found
    assert '<td>&lt;x&gt;</td><td class="number">1</td>' in found


def test_picture_holds_its_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    tag = picture(image, 'a "tile"', lossless=True)
    assert 'alt="a &quot;tile&quot;"' in tag
    data = base64.b64decode(tag.split("base64,")[1].split('"')[0])
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(back[..., ::-1], image)
    assert 'width="15" height="10"' in picture(image, "small", most_px=15)


def test_sections_without_body_are_named_with_their_reason() -> None:
    sections = [
        Section("a", "Apples", "how", [element("p", "x")]),
        Section("b", "Beer", missing="no <beer>."),
    ]
    page = render_page("t", element("header"), sections, {"a": "more"})
    assert '<section id="a"' in page
    assert '<section id="b"' not in page
    assert "<b>Beer</b>: no &lt;beer&gt;." in page
    assert "more" in page


def test_numbers_and_times() -> None:
    assert number(1234567) == "1,234,567"
    assert number(-0.00012345) == "−0.0001234"
    assert number(12345.6) == "12,346"
    assert number(True) == number(None) == number(float("nan")) == "–"
    assert [duration(s) for s in (0, 59.6, 3600, 90061)] == ["0 s", "1 min", "1 h", "1 d 1 h"]
