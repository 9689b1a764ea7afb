"""What the machine has that matters for reading slides: cores, GPUs, memory, room on disk and in /dev/shm, decoders."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from eosin.provenance import versions


@dataclass(frozen=True)
class Machine:
    """cores: that this process may use, by affinity and the container's quota. GB are 1e9 bytes; None where unknown."""

    cores: int
    load: float | None
    memory_gb: float | None
    memory_free_gb: float | None
    gpus: tuple[tuple[str, float], ...]
    disk: str
    disk_free_gb: float | None
    shm_gb: float | None
    shm_free_gb: float | None
    versions: dict[str, str]
    decoders: dict[str, str]


def machine(folder: Path) -> Machine:
    """This machine; `folder` is where free disk space is looked up."""
    memory = _memory()
    shm = _room(Path("/dev/shm"))
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    room = _room(folder)
    return Machine(
        cores=usable_cores(),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        memory_gb=memory.get("MemTotal"),
        memory_free_gb=memory.get("MemAvailable"),
        gpus=tuple(_gpus()),
        disk=str(folder),
        disk_free_gb=None if room is None else room[1],
        shm_gb=None if shm is None else shm[0],
        shm_free_gb=None if shm is None else shm[1],
        versions=versions(),
        decoders=_decoders(),
    )


def usable_cores() -> int:
    """Cores by affinity, fewer where a container's CPU quota (cgroup v2) allows less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return min(cores, max(int(quota) // int(period), 1)) if quota.isdigit() and period.isdigit() else cores


def _room(folder: Path) -> tuple[float, float] | None:
    """All and free space of a file system, GB."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.total / 1e9, usage.free / 1e9


def _memory() -> dict[str, float]:
    """/proc/meminfo in GB; empty on other systems."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    fields = [line.split() for line in lines if line.endswith("kB")]
    return {words[0].rstrip(":"): int(words[1]) * 1024 / 1e9 for words in fields if words[1].isdigit()}


def _gpus() -> list[tuple[str, float]]:
    """Name and memory (GB) of each GPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    found = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [(gpu.name, gpu.total_memory / 1e9) for gpu in found]


def _decoders() -> dict[str, str]:
    """What decodes which pixels, with versions."""
    import cv2
    import imagecodecs
    import openslide
    from PIL import features

    turbo = features.version("libjpeg_turbo")
    return {
        "OpenSlide": openslide.__library_version__,
        "JPEG": f"libjpeg-turbo in simplejpeg {versions()['simplejpeg']}" + (f" (Pillow's: {turbo})" if turbo else ""),
        "JPEG 2000": imagecodecs.jpeg2k_version(),
        "Zstandard": imagecodecs.zstd_version(),
        "OpenCV": cv2.__version__,
    }
