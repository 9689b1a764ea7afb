"""Copies what benchmarks/gpu_proof.py needs of a data folder into gpu-data/, small enough to travel with a checkout.

    python benchmarks/carry_data.py DATA [-o gpu-data] [--most-mb 60]        (or: make gpu-data DATA=…)

The licences of these images allow research, not passing them on: gpu-data/ is ignored by git, keep it so. Where
everything is more than --most-mb megabytes, training tiles are left out, evenly in each class, until it fits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

TILES = "colon5_tiles/train"
WANTED = (
    "*/README.md",
    "colon5_tiles/labels.csv",
    "colon5_tiles/val/**/*",
    "crc_cells_27px/cells.csv",
    "crc_cells_27px/cells.npz",
    "consep_patches_train/labels.csv",
    "consep_patches_train/images/*",
    "slides/CMU-1-Small-Region.svs",
    f"{TILES}/**/*",
)
"""Everything that the proof reads."""
MARKER = ".carried"  # a folder without it is not ours to empty
FOLDERS = ("colon5_tiles", "crc_cells_27px", "consep_patches_train", "slides")


def chosen_files(data: Path, most_bytes: int) -> list[Path]:
    """Files to copy, relative to `data`; raises ValueError where even without training tiles they are too many."""
    found = sorted({path for pattern in WANTED for path in data.glob(pattern) if path.is_file()})
    names = [path.relative_to(data) for path in found if path.relative_to(data).parts[0] in FOLDERS]
    tiles = [name for name in names if name.is_relative_to(TILES)]
    rest = [name for name in names if name not in set(tiles)]
    room = most_bytes - sum((data / name).stat().st_size for name in rest)
    if room < 0 or not tiles:
        raise ValueError(f"{data} does not hold the tiles and tasks of the proof within {most_bytes / 1e6:.0f} MB")
    return rest + thinned(data, tiles, room)


def thinned(data: Path, tiles: Sequence[Path], room: int) -> list[Path]:
    """As many of the tiles as fit into `room` bytes, the same share of each class, evenly spaced."""
    classes: dict[Path, list[Path]] = defaultdict(list)
    for name in tiles:
        classes[name.parent].append(name)
    share = min(1.0, room / sum((data / name).stat().st_size for name in tiles))
    while True:
        kept = [
            names[int(number / share)]
            for names in classes.values()
            for number in range(int(len(names) * share))
            if int(number / share) < len(names)
        ]
        if sum((data / name).stat().st_size for name in kept) <= room:
            return kept
        share *= 0.99


def clear(out: Path) -> None:
    """Remove an earlier copy; raises ValueError where `out` holds anything else."""
    if out.is_dir() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise ValueError(f"{out} holds other files; give a new folder with -o")
        shutil.rmtree(out)


def main(words: Sequence[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, default=Path("gpu-data"))
    parser.add_argument("--most-mb", type=float, default=60.0)
    args = parser.parse_args(words)
    try:
        names = chosen_files(args.data, int(args.most_mb * 1e6))
        clear(args.out)
        for name in names:
            target = args.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(args.data / name, target)
        (args.out / MARKER).write_text("copied by benchmarks/carry_data.py; do not commit\n")
    except (OSError, ValueError) as error:
        print(f"carry-data: {error}", file=sys.stderr)
        return 2
    size = sum((args.out / name).stat().st_size for name in names) / 1e6
    print(f"{args.out}: {len(names)} files, {size:.1f} MB. Licences forbid passing them on: do not commit this folder.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
