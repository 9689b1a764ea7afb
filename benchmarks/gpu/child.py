"""A child process that may fail, hang or use up the GPU's memory without taking the proof with it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.settings import ROOT

import eosin

PATIENCE = 20.0  # seconds from SIGTERM, on which a run saves its state, to SIGKILL


@dataclass(frozen=True)
class Ended:
    """How a child process ended."""

    code: int
    seconds: float
    timed_out: bool
    last_line: str

    @property
    def problem(self) -> str:
        """One line; empty where all went well."""
        if self.timed_out:
            return f"stopped after {self.seconds:.0f} s, its share of the time"
        return "" if self.code == 0 else f"ended with {self.code}: {self.last_line}"


def run_child(words: Sequence[str], seconds: float, log: Path) -> Ended:
    """Run `python WORDS` with its output appended to `log`, for at most `seconds` and a little patience."""
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with open(log, "ab") as handle:
        first = handle.tell()
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=_environment(), stdout=handle, stderr=handle, process_group=0
        )
        try:
            code, timed_out = _wait(process, seconds)
        finally:
            _kill_group(process)
    return Ended(code, time.perf_counter() - began, timed_out, _last_line(log, first))


def _wait(process: subprocess.Popen[bytes], seconds: float) -> tuple[int, bool]:
    try:
        return process.wait(max(seconds, 1.0)), False
    except subprocess.TimeoutExpired:
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(PATIENCE), True
    return -signal.SIGKILL, True


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """End what is left of the child and of the processes it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _environment() -> dict[str, str]:
    """The child finds `benchmarks` and the eosin that this process uses."""
    places = [str(ROOT), str(Path(eosin.__file__).resolve().parents[1])]
    if known := os.environ.get("PYTHONPATH"):
        places.append(known)
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONUNBUFFERED": "1"}
    if sys.platform == "linux":  # processes of one machine need no network
        found = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", **found}
    return found


def _last_line(log: Path, first: int) -> str:
    text = log.read_bytes()[first:].decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no output"


def one_line(error: BaseException) -> str:
    """What an exception says, in one line of at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:300]
