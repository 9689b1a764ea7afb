"""What eosin does on one GPU, in at most eight minutes: speed, learning, reading, distributed sanity.

    python benchmarks/gpu_proof.py [DATA] -o OUT [--start FILE] [--minutes 8]        (or: make gpu-proof DATA=…)

DATA is the folder of real tiles that benchmarks/carry_data.py copies together; without it only what needs no data runs.
Writes OUT/gpu_proof.json and OUT/gpu_proof.html, anew after each part, so that a run that is killed keeps what it has.
Without a GPU it refuses, but for `--device cpu --tiny`, which goes the same way at toy size and proves nothing.
Exit: 0 done, 1 a part failed as a whole, 2 refused.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from benchmarks.gpu.child import one_line
from benchmarks.gpu.facts import machine_facts
from benchmarks.gpu.page import write_page
from benchmarks.gpu.settings import VARIANTS, Settings

from eosin.errors import EosinError
from eosin.files import write_json

PARTS = ("steps", "reading", "learning", "distributed")
SHARES = {"steps": 0.36, "reading": 0.03, "distributed": 0.13}
"""Of the minutes; learning gets what is left over, and distributed what is then left."""
LEAST = {"steps": 20.0, "reading": 4.0, "learning": 60.0, "distributed": 20.0}
"""Seconds below which a part is not begun."""
NEEDED = (
    "colon5_tiles/train",
    "colon5_tiles/labels.csv",
    "crc_cells_27px/cells.npz",
    "consep_patches_train/labels.csv",
)


class Proof:
    """What has been found so far, and the time that is left."""

    def __init__(self, settings: Settings, minutes: float, command: str) -> None:
        self.settings = settings
        self._began = time.perf_counter()
        self._end = self._began + 60 * minutes
        self._record: dict[str, Any] = {"command": command, "minutes": minutes, "left_out": [], "part_seconds": {}}
        self.failed = False

    def left(self) -> float:
        """Seconds until the minutes are over."""
        return self._end - time.perf_counter()

    def leave_out(self, part: str, why: str) -> None:
        """Say why a part is not there."""
        say(f"{part}: left out: {why}")
        self._record["left_out"].append({"part": part, "why": why})
        self.write()

    def add(self, part: str, make: Callable[[], dict[str, Any]]) -> None:
        """Run a part and keep what it finds, or what went wrong with it."""
        began = time.perf_counter()
        try:
            self._record[part] = make()
        except Exception as error:  # the other parts still say something
            traceback.print_exc()
            self.leave_out(part, one_line(error))
            self.failed = True
        else:
            self.failed |= bool(self._record[part].get("error"))
        seconds = self._record["part_seconds"][part] = time.perf_counter() - began
        say(f"{part}: {seconds:.0f} s, {max(self.left(), 0):.0f} s left")
        self.write()

    def write(self, complete: bool = False) -> None:
        """Both files, as things stand."""
        record = {**self._record, "seconds": time.perf_counter() - self._began, "complete": complete}
        write_json(self.settings.out / "gpu_proof.json", record)
        write_page(record, self.settings.out / "gpu_proof.html")


def say(text: str) -> None:
    """A line for whoever watches."""
    print(text, file=sys.stderr, flush=True)


def run(proof: Proof, parts: Sequence[str]) -> None:
    """All parts in order, each in its share of the time."""
    settings, total = proof.settings, proof.left()
    proof.add("facts", lambda: machine_facts(settings))
    for part in PARTS:
        if part not in parts:
            proof.leave_out(part, "not asked for (--parts)")
        elif part in ("reading", "learning") and settings.data is None:
            proof.leave_out(part, "it needs DATA, the folder of real tiles")
        elif (left := proof.left()) < LEAST[part]:
            proof.leave_out(part, f"{max(left, 0):.0f} s were left and it takes {LEAST[part]:.0f} or more")
        else:
            later = sum(SHARES.get(name, 0.0) for name in PARTS[PARTS.index(part) + 1 :] if name in parts)
            wanted = left - later * total if part in ("learning", "distributed") else SHARES[part] * total
            proof.add(part, part_of(part, settings, min(max(wanted, LEAST[part]), left), left))
    proof.write(complete=True)


def part_of(part: str, settings: Settings, seconds: float, left: float) -> Callable[[], dict[str, Any]]:
    """What a part does; imported here so that a library that is missing costs one part."""
    if part == "steps":
        from benchmarks.gpu.steps import measure_steps

        return lambda: {"rows": measure_steps(settings, seconds)}
    if part == "reading":
        from benchmarks.gpu.reading import measure_reading

        return lambda: {"rows": measure_reading(settings, seconds)}
    if part == "learning":
        from benchmarks.gpu.learning import measure_learning

        return lambda: measure_learning(settings, seconds, left)
    from benchmarks.gpu.distributed import measure_distributed

    return lambda: measure_distributed(settings, seconds)


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder with colon5_tiles, crc_cells_27px, …")
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu-proof"))
    parser.add_argument("--start", default="random", help="weights that learning starts from; random without")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for everything; what does not fit is left out")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma list of " + ", ".join(PARTS))
    parser.add_argument("--variants", default=",".join(VARIANTS), help="comma list of " + ", ".join(VARIANTS))
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="toy sizes, to try the proof itself")
    return parser.parse_args(words)


def refusal(args: argparse.Namespace) -> str:
    """Why nothing can be proven here; empty where it can."""
    if args.device == "cuda" and not torch.cuda.is_available():
        return "no CUDA GPU here; --device cpu --tiny goes through the proof at toy size"
    if args.device == "cpu" and not args.tiny:
        return "full size needs a GPU; add --tiny to --device cpu"
    if unknown := set(args.parts.split(",")) - set(PARTS):
        return f"no part called {sorted(unknown)[0]}; there are {', '.join(PARTS)}"
    if unknown := set(args.variants.split(",")) - set(VARIANTS):
        return f"no variant called {sorted(unknown)[0]}; there are {', '.join(VARIANTS)}"
    if args.data is not None and (missing := [name for name in NEEDED if not (args.data / name).exists()]):
        return f"{args.data} has no {missing[0]}; give the folder that benchmarks/carry_data.py made"
    if args.start != "random" and not Path(args.start).exists():
        return f"--start {args.start}: no such file"
    return ""


def main(words: Sequence[str] | None = None) -> int:
    """The exit status."""
    args = arguments(words)
    if why := refusal(args):
        say(f"gpu-proof: {why}")
        return 2
    settings = Settings(
        data=args.data.resolve() if args.data else None,
        out=args.out.resolve(),
        start=args.start if args.start == "random" else str(Path(args.start).resolve()),
        device=args.device,
        tiny=args.tiny,
        variants=tuple(name for name in VARIANTS if name in args.variants.split(",")),
    )
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
        proof = Proof(settings, args.minutes, shlex.join(["python", *sys.argv]))
        run(proof, args.parts.split(","))
    except (EosinError, OSError) as error:
        say(f"gpu-proof: {error}")
        return 2
    say(f"written: {settings.out / 'gpu_proof.json'} and gpu_proof.html")
    return int(proof.failed)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are ended on the way out
    sys.exit(main())
