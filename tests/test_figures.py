"""Pictures as bytes: what goes in can be found again in what comes out."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from eosin import figures


def curve_points(svg: str, name: str) -> np.ndarray:
    """Points [N, 2] of the path in the group with id `name`."""
    group = re.search(rf'<g id="{name}">\s*<path d="([^"]*)"', svg)
    assert group
    return np.array([[float(v) for v in pair] for pair in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", group.group(1))])


def test_curve_holds_the_data_to_an_affine_map() -> None:
    x = np.array([0.0, 10.0, 20.0, 40.0, 70.0])
    y = np.array([3.0, 1.0, np.nan, -2.0, 5.0])
    svg = figures.line_chart(x, y, "loss/a b")
    points = curve_points(svg, "curve-loss-a-b")
    keep = np.isfinite(y)
    assert len(points) == 4
    for column, values, sign in ((0, x[keep], 1), (1, y[keep], -1)):
        slope, start = np.polyfit(values, points[:, column], 1)
        assert np.allclose(slope * values + start, points[:, column], atol=1e-4)
        assert np.sign(slope) == sign  # SVG's y runs downwards


def test_chart_is_bare_markup_with_ids_of_its_own() -> None:
    svg = figures.line_chart([0, 1], [1.0, 2.0], "a", reference=9.0)
    other = figures.line_chart([0, 1], [1.0, 2.0], "b")
    tree = ElementTree.fromstring(svg)
    assert tree.tag.endswith("svg")
    ids = [re.findall(r'id="([^"]+)"', one) for one in (svg, other)]
    assert not set(ids[0]) & set(ids[1])
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", svg)) <= set(ids[0])
    assert "<style" not in svg
    assert "metadata" not in svg
    assert "var(--accent)" in svg
    assert "var(--second)" in svg
    assert not re.search(r"#0[1-4]0[1-4]0[1-4]", svg)
    assert svg == figures.line_chart([0, 1], [1.0, 2.0], "a", reference=9.0)


def test_long_curves_are_thinned_and_keep_their_spikes() -> None:
    y = np.zeros(5000)
    y[1234] = 7.0
    x, mean, low, high = figures.thin(np.arange(5000.0), y, most=100)
    assert len(x) == len(mean) == 100
    assert high.max() == 7.0
    assert low.max() == 0.0
    assert np.isclose(mean.sum() * 50, 7.0)
    assert np.isclose(x[0], 24.5)
    svg = figures.line_chart(np.arange(5000), y, "spike")
    assert len(curve_points(svg, "curve-spike")) == 400
    assert 'id="band-spike"' in svg


def test_empty_and_single_points_are_drawn() -> None:
    assert "<svg" in figures.line_chart([], [], "none")
    assert len(curve_points(figures.line_chart([3], [1.0], "one"), "curve-one")) == 1


def test_contact_sheet_geometry() -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (9, 9, 9), (90, 90, 90)]
    images = [np.full((8, 8, 3), colour, dtype=np.uint8) for colour in colours]
    images[1] = images[1][:4]  # a wide one: 4 x 8
    sheet = figures.contact_sheet(images, columns=3, cell_px=16, gap_px=2, background=77)
    assert sheet.shape == (2 * 16 + 2, 3 * 16 + 2 * 2, 3)
    for number, colour in enumerate(colours):
        top, left = number // 3 * 18, number % 3 * 18
        assert tuple(sheet[top + 8, left + 8]) == colour
    assert np.all(sheet[16:18] == 77)
    assert np.all(sheet[:, 16:18] == 77)
    assert np.all(sheet[18:, 36:] == 77)  # the sixth cell is empty
    assert np.all(sheet[0:4, 18:34] == 77)
    assert np.all(sheet[12:16, 18:34] == 77)
    assert np.all(sheet[4:12, 18:34] == (0, 250, 0))
    with pytest.raises(ValueError, match="needs images"):
        figures.contact_sheet([], columns=3, cell_px=16)


def test_outline_is_the_inner_border() -> None:
    image = np.zeros((8, 9, 3), dtype=np.uint8)
    mask = np.zeros((8, 9), dtype=bool)
    mask[2:6, 3:9] = True  # reaches the right edge
    drawn = figures.outline(image, mask, colour=(1, 2, 3))
    expected = mask.copy()
    expected[3:5, 4:8] = False
    assert np.array_equal((drawn == (1, 2, 3)).all(axis=2), expected)
    assert image.max() == 0
    with pytest.raises(ValueError, match="differ in size"):
        figures.outline(image, mask[:4])


def test_encoders_keep_colours() -> None:
    y, x = np.mgrid[0:32, 0:48]
    image = np.stack([x * 5, y * 7, np.full_like(x, 200)], axis=2).astype(np.uint8)
    for data, tolerance in ((figures.png(image), 0), (figures.jpeg(image, 95), 12)):
        back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert np.abs(back.astype(int) - image).max() <= tolerance
    assert figures.data_uri(b"abc", "image/png") == "data:image/png;base64,YWJj"
    with pytest.raises(ValueError, match="uint8"):
        figures.png(image.astype(float))


def test_shrink_averages_and_never_enlarges() -> None:
    image = np.zeros((4, 8, 3), dtype=np.uint8)
    image[::2] = 200
    assert figures.shrink(image, 8) is image
    small = figures.shrink(image, 4)
    assert small.shape == (2, 4, 3)
    assert np.all(small == 100)
