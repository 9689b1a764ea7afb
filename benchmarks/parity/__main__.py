"""python -m benchmarks.parity --dino CHECKOUT --dinov2 CHECKOUT [--only dinov2|dino|tables] [--worst N] [--shim]

Prints, for every configuration, the tensors that are furthest apart. Exit 0 if all are within the bounds, else 1.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from . import cases, dino_side, dinov2_side, ours, shim, tables
from .inputs import networks_of, step_inputs
from .trace import Difference, Trace, differences

FP64, FP32, TABLE = 1e-8, 1e-5, 1e-12
STEPS = 2 * cases.EPOCH
"""The first two stand in the last layer's frozen epoch, the first one at learning rate 0."""


def main() -> int:
    """Compare everything that was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__)
    parser.add_argument("--dino", type=Path, required=True, help="checkout of facebookresearch/dino")
    parser.add_argument("--dinov2", type=Path, required=True, help="checkout of facebookresearch/dinov2")
    parser.add_argument("--only", choices=["dinov2", "dino", "tables"])
    parser.add_argument("--worst", type=int, default=1, help="tensors printed for each quantity")
    parser.add_argument("--shim", action="store_true", help="only print what stands around their code")
    args = parser.parse_args()
    if args.shim:
        print(shim.listed())
        return 0
    started = time.perf_counter()
    print(f"dino {commit_of(args.dino)}, dinov2 {commit_of(args.dinov2)}, torch {torch.__version__}")
    dinov2_side.load(args.dinov2, torch.device("cpu"))
    dino = dino_side.load(args.dino)
    good = True
    if args.only in (None, "tables"):
        good &= print_tables(tables.all_rows(dino))
    if args.only in (None, "dinov2"):
        for name, changes in cases.DINOV2.items():
            recipe = cases.dinov2_recipe(changes)

            def theirs(dtype: torch.dtype, steps: int, recipe: ours.Recipe = recipe) -> Trace:
                given = step_inputs(recipe, steps)
                return dinov2_side.run(recipe, networks_of(recipe), given, dtype, cases.EPOCH)

            good &= compare(f"DINOv2: {name}", recipe, theirs, args.worst)
    if args.only in (None, "dino"):
        for name, changes in cases.DINO.items():
            recipe = cases.dino_recipe(changes)

            def theirs(dtype: torch.dtype, steps: int, recipe: ours.Recipe = recipe) -> Trace:
                given = step_inputs(recipe, steps)
                return dino_side.run(dino, recipe, networks_of(recipe), given, dtype, cases.EPOCH)

            good &= compare(f"DINO v1: {name}", recipe, theirs, args.worst)
    import_module("torch.distributed").destroy_process_group()
    print(f"{'PASS' if good else 'FAIL'} in {time.perf_counter() - started:.0f} s")
    return 0 if good else 1


def commit_of(checkout: Path) -> str:
    """The commit of a git checkout, or that of a file COMMIT in an unpacked archive."""
    if (checkout / "COMMIT").is_file():
        return (checkout / "COMMIT").read_text().strip()
    answer = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return answer.stdout.strip() or "of unknown commit"


def compare(name: str, recipe: ours.Recipe, theirs: Callable[[torch.dtype, int], Trace], worst: int) -> bool:
    """All quantities of all steps in fp64; loss terms and gradients of the first step in fp32."""
    print(f"\n{name}")
    good = True
    for dtype, steps, bound in ((torch.float64, STEPS, FP64), (torch.float32, 1, FP32)):
        their_trace = theirs(dtype, steps if dtype == torch.float64 else cases.EPOCH)
        given = step_inputs(recipe, len(their_trace.losses))
        our_trace = ours.run(recipe, networks_of(recipe), given, dtype)
        found = [d for d in differences(our_trace, their_trace) if d.step < steps]
        if dtype == torch.float32:
            found = [d for d in found if d.quantity in ("loss term", "gradient", "clipped gradient")]
        good &= print_worst(f"{str(dtype).removeprefix('torch.')}, {steps} steps", found, bound, worst)
    return good


def print_worst(title: str, found: list[Difference], bound: float, worst: int) -> bool:
    """The `worst` differences of each quantity, which come sorted; whether all are within `bound`."""
    good = all(d.ratio <= bound for d in found)
    print(f"  {title}: {len(found)} tensors, {'within' if good else 'NOT WITHIN'} {bound:g}")
    for quantity in dict.fromkeys(d.quantity for d in found):
        for difference in [d for d in found if d.quantity == quantity][:worst]:
            print(f"    {difference}")
    return good


def print_tables(rows: list[tables.Row]) -> bool:
    """One line a table; whether all are equal to rounding."""
    for row in rows:
        print(f"{row.apart:.1e}  {row.entries:7d} entries  {row.name}")
    return all(row.apart <= TABLE for row in rows)


if __name__ == "__main__":
    sys.exit(main())
