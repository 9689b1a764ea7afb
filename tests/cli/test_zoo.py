"""`eosin zoo`, called as a shell calls it."""

from __future__ import annotations

import sys

import pytest

from eosin.cli import zoo as command
from eosin.models.zoo import zoo as entries


def say(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What `eosin zoo WORDS` prints."""
    argv, sys.argv = sys.argv, ["eosin", *words]
    try:
        command.zoo(standalone_mode=False)
    finally:
        sys.argv = argv
    return capsys.readouterr().out


def test_list_names_every_entry_on_one_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    lines = say(capsys, "list").splitlines()
    assert lines[0].split() == [
        *("name", "architecture", "params", "size", "µm/px", "pooling", "width", "licence", "gated", "tested"),
    ]
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(entries())]}
    assert list(rows) == list(entries())
    assert rows["kaiko/midnight-12k"].split()[1:] == [
        *("ViT-1536/14", "x40,", "SwiGLU", "1,136", "M", "224", "0.25-2", "cls+mean", "3072", "MIT", "no"),
        *("definition,", "count"),
    ]
    assert rows["histai/hibou-b"].split()[-1] == "untested"
    assert say(capsys, "list", "--plain").split() == list(entries())


def test_show_says_everything_and_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    said = say(capsys, "show", "UNI2-h")
    for part in (
        "mahmoodlab/uni2-h\n",
        "681.4 M parameters",
        "mean [0.485, 0.456, 0.406]",
        "cls, 1536 numbers",
        "CC-BY-NC-ND-4.0",
        "d517a8dd47902dd7c308b3c36f63bce47e7b9a43",
        "architecture  README of mahmoodlab/UNI",
        "accept the licence at https://huggingface.co/MahmoodLab/UNI2-h",
        "--weights FILE",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("virchov2", "is paige/virchow2 or"),
        ("vits16", "may mean kaiko/vits16 or lunit/vits16"),
        ("zzzz", "see `eosin zoo list`"),
    ],
)
def test_a_name_that_means_nothing_gets_a_hint(word: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    from eosin.errors import WeightsError

    with pytest.raises(WeightsError, match=hint) as caught:
        say(capsys, "show", word)
    assert "\n" not in str(caught.value)
