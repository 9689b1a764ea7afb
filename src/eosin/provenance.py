"""What a result can be traced back to: content hashes and versions.

A hash is the first 16 hex digits of SHA-256 over canonical JSON (sorted keys, no spaces) or over a file's bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

HASH_DIGITS = 16
PACKAGES = (
    *("eosin", "torch", "numpy", "openslide-python", "openslide-bin", "opencv-python-headless"),
    *("simplejpeg", "Pillow", "tifffile", "imagecodecs"),
)


def hash_of(value: Any) -> str:
    """Hash of a JSON-like value; equal values hash equal on any machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_DIGITS]


def hash_file(path: str | os.PathLike[str]) -> str:
    """Hash of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:HASH_DIGITS]


def hash_state(state: dict[str, Any]) -> str:
    """Hash of a model: names, shapes and fp32 values of its tensors, in name order, whatever dtype they came in."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().float().contiguous().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()[:HASH_DIGITS]


def versions() -> dict[str, str]:
    """Versions of what computes: eosin, Python, torch, numpy, what decodes pixels, machine."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def file_identity(path: str | os.PathLike[str]) -> dict[str, int | str]:
    """What pins a large file without reading it: name, size in bytes, modification time in ns."""
    stat = Path(path).stat()
    return {"name": Path(path).name, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}
