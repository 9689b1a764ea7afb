"""Writes are whole or not at all, and say in one line why they failed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eosin.errors import OutputError
from eosin.files import atomic_folder, atomic_path, check_writable, write_json, write_text


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_folder_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as temporary:
        write_text(temporary / "x", "1")
    with pytest.raises(RuntimeError), atomic_folder(target) as temporary:
        write_text(temporary / "x", "2")
        raise RuntimeError
    assert (target / "x").read_text() == "1"
    with atomic_folder(target) as temporary:
        write_text(temporary / "y", "3")
    assert sorted(os.listdir(target)) == ["y"]
    assert os.listdir(tmp_path) == ["model"]


def test_unwritable_places_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "below", Path("/proc/none")):
        with pytest.raises(OutputError, match="cannot"):
            check_writable(place)
        with pytest.raises(OutputError, match="cannot"):
            write_text(place / "x", "")


def test_full_disk_is_one_line_and_keeps_the_old_file() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(OutputError, match="No space left"),
        atomic_path("/dev/shm/eosin-test-full") as temporary,
    ):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")
        temporary.write_bytes(b"")
    assert not Path("/dev/shm/eosin-test-full").exists()


def test_nan_becomes_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"x": [float("nan"), 1.5, float("inf")]})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": [\n    null,\n    1.5,\n    null\n  ]\n}\n'
