"""Remembered hashes: of the file as it is now, read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eosin.evaluation import file_hashes as module
from eosin.evaluation.file_hashes import file_hashes
from eosin.provenance import hash_file


def test_files_are_read_once_and_again_when_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def counting(path: Path) -> str:
        read.append(path)
        return hash_file(path)

    monkeypatch.setattr(module, "hash_file", counting)
    path, kept = tmp_path / "a", tmp_path / "cache" / "files.json"
    path.write_bytes(b"one")
    for _ in range(3):
        with file_hashes(kept) as hashed:
            assert hashed(path) == hash_file(path)
    assert len(read) == 1
    path.write_bytes(b"two")
    os.utime(path, ns=(1, 1))
    with file_hashes(kept) as hashed:
        assert hashed(path) == hash_file(path)
    assert len(read) == 2
    kept.write_text('{"a": 3}')
    with file_hashes(kept) as hashed:
        assert hashed(path) == hash_file(path)
    with pytest.raises(OSError), file_hashes(kept) as hashed:
        hashed(tmp_path / "none")
