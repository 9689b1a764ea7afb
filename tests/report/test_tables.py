"""Probe, slide and recipe tables say what the records say."""

from __future__ import annotations

import re

import numpy as np

from eosin.report.run_page import named
from eosin.report.tables import mask_on, probe_section, recipe_section


def row(model: str, mean: float | None, **more: object) -> dict:
    base = {"task": "t", "metric": "balanced_accuracy", "split": "test", "protocol": "knn", "model": model}
    return {**base, "mean": mean, "ci_low": None, "ci_high": None, "n": 10, "chance": 0.2, **more}


def test_bars_lie_where_the_numbers_are() -> None:
    body = "".join(probe_section([row("m", 0.5, ci_low=0.25, ci_high=0.75)], [], {}).body)
    assert 'cx="88.0"' in body  # the middle of 4..172
    assert 'x1="46.0" x2="130.0"' in body
    assert 'x1="37.6" x2="37.6"' in body  # chance 0.2
    assert "0.250 – 0.750" in body


def test_values_outside_shares_get_an_axis_of_their_own() -> None:
    body = "".join(probe_section([row("m", -3.0, chance=None), row("k", 5.0, chance=None)], [], {}).body)
    places = [float(x) for x in re.findall(r'cx="([-\d.]+)"', body)]
    assert 4 < places[0] < places[1] < 172
    assert "chance</span>" not in body


def test_protocols_stand_apart_with_their_own_differences() -> None:
    rows = [row("m", 0.5), row("m", 0.6, protocol="logreg")]
    pair = {"task": "t", "metric": "balanced_accuracy", "a": "m", "b": "k", "difference": -0.2, "p": 0.5}
    pairs = [
        {**pair, "protocol": "knn", "ci_low": -0.3, "ci_high": -0.1, "p": 0.01},
        {**pair, "protocol": "logreg", "ci_low": -0.3, "ci_high": 0.1},
    ]
    body = probe_section(rows, pairs, {}).body
    assert body[0] == "<h3>t</h3>"
    assert "knn · balanced accuracy" in body[1]
    assert "k is better" in body[2]
    assert "logreg · balanced accuracy" in body[3]
    assert "no difference shown" in body[4]


def test_missing_numbers_and_leaks_are_said() -> None:
    rows = [row("m", None, shared_groups=3, resampled="patient", task_in_training=True)]
    body = "".join(probe_section(rows, [], {}).body)
    assert "3 patients have samples both in train and in test" in body
    assert "m was trained on images or patients of this task" in body
    assert "circle" not in body


def test_models_are_named_by_hash() -> None:
    rows = [{"model": "x/model", "model_hash": "1"}, {"model": "colour"}, {"model": "vit", "model_hash": "9"}]
    assert [one["model"] for one in named(rows, {"1": "trained"})] == ["trained", "colour-only", "vit"]
    pair = named([{"model": "x", "model_hash": "1", "against": "colour", "against_hash": "2"}], {"1": "trained"})
    assert (pair[0]["a"], pair[0]["b"]) == ("trained", "colour-only")
    assert named([{"a": "p", "b": "q"}], {})[0] == {"a": "p", "b": "q"}


def test_mask_lies_on_the_picture_by_micrometres() -> None:
    # 800 x 400 µm; the mask's pixels are 100 µm and reach past the slide, as foreground masks do.
    mask = np.zeros((5, 9), dtype=bool)
    mask[1, 6:8] = True
    on = mask_on((40, 80), (400.0, 800.0), mask, 100.0)
    expected = np.zeros((40, 80), dtype=bool)
    expected[10:20, 60:80] = True
    assert np.array_equal(on, expected)


def test_recipe_rows_have_their_marks() -> None:
    recipe = {"encoder": {"width": 8, "bias": None}, "scale": [0.5, 1.0]}
    body = "".join(recipe_section(recipe, {"encoder.width": "A"}, "eosin train x").body)
    assert "eosin train x" in body
    assert re.search(r"encoder\.width</span></td><td><span class=\"code\">8</span></td><td><span class=\"mark\"", body)
    assert "0.5, 1.0" in body
    assert "a published replication" not in body
