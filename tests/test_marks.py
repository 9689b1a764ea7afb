"""Marked YAML: marks, nesting, round trip, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin.errors import RecipeError
from eosin.marks import format_marked, parse_marked, read_marked

TEXT = """
name: x
width: !A 14
views: !C
  scale: [0.32, 1.0]
  word: !O 'yes'
  none: !O null
  truth: !R true
mpp: !S {low: 0.25, high: 2.0}
"""


def test_values_and_marks() -> None:
    values, marks = parse_marked(TEXT, "t")
    assert values == {
        "name": "x",
        "width": 14,
        "views": {"scale": [0.32, 1.0], "word": "yes", "none": None, "truth": True},
        "mpp": {"low": 0.25, "high": 2.0},
    }
    assert marks == {
        "width": "A",
        "views.scale": "C",
        "views.word": "O",
        "views.none": "O",
        "views.truth": "R",
        "mpp.low": "S",
        "mpp.high": "S",
    }
    assert parse_marked(format_marked(values, marks), "again") == (values, marks)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: !Z 1", "unknown mark !Z"),
        ("a: 1\na: 2", "given twice"),
        ("a: [1", "line"),
        ("- 1", "mapping"),
        ("a: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
    ],
)
def test_broken_text_is_one_line(text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        parse_marked(text, "recipe")
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot read recipe"):
        read_marked(tmp_path / "none.yaml")
