"""What the numbers were measured on: GPU, driver, libraries, cores, and what the GPU gives on one large product."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from typing import Any

import torch
from benchmarks.gpu.settings import ROOT, Settings

import eosin
from eosin.training.gpus import gpu_here

SIDE = 8192  # of the square bf16 product


def machine_facts(settings: Settings) -> dict[str, Any]:
    """Names and versions; `peak_tflops` is the data sheet's dense bf16, None where the GPU is not listed."""
    facts: dict[str, Any] = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "eosin": eosin.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": settings.device,
        "tiny": settings.tiny,
    }
    if settings.device == "cuda":
        facts.update(_gpu_facts())
    return facts


def _gpu_facts() -> dict[str, Any]:
    here = gpu_here()
    assert here is not None
    name, known = here
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": name,
        "gpus": torch.cuda.device_count(),
        "memory_gb": properties.total_memory / 1e9,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(str(part) for part in torch.cuda.nccl.version()),
        "peak_tflops": known.tflops if known else None,
        "peak_name": f"{known.name}, data sheet, dense bf16" if known else None,
        "product_tflops": _product_tflops(),
    }


def _product_tflops() -> float:
    """Median rate of a bf16 product of random matrices: what the GPU gives where nothing is in the way."""
    a, b = (torch.randn(SIDE, SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(13):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        a @ b
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1000)
    del a, b
    torch.cuda.empty_cache()
    return 2 * SIDE**3 / statistics.median(times[3:]) / 1e12


def _driver() -> str:
    return _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]) or "unknown"


def _commit() -> str:
    found = _output(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    changed = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return f"{found} with changes" if found and changed else found or "unknown"


def _output(words: list[str]) -> str:
    """First line of what a program prints; empty where it is missing or fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return next(iter(done.stdout.splitlines()), "").strip()
