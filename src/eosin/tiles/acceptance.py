"""How many tries gave a tile, by slide and µm/px, and why the others did not: counted over a run, kept in its folder.

The counts belong to the tiles of the steps that were done, so a run that was stopped and resumed has those of one that
was not. The file holds the counts at the last few saves; a run that goes on from none of them counts anew from there.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import DataError
from eosin.files import PathLike, atomic_path
from eosin.tiles.config import MppRange, TilesConfig
from eosin.tiles.stream import TileBatch

PARTS = 8  # of a continuous range of µm/px
SAVES = 3
OUTCOMES = ("taken", "place", "hsv", "read")

Key = tuple[str, float, str]
"""Slide or image, µm/px, outcome."""


class AcceptanceRow(NamedTuple):
    """One slide (or image) at one µm/px: tiles taken, and tries that failed.

    mpp: of a continuous range, the middle of one of its 8 parts. place: the slide has no place with enough foreground.
    hsv: the HSV rule. read: it could not be read.
    """

    slide: str
    mpp: float
    taken: int
    place: int
    hsv: int
    read: int

    @property
    def rate(self) -> float:
        """Share of the tiles read that were taken; NaN where none was read."""
        return self.taken / (self.taken + self.hsv) if self.taken + self.hsv else math.nan


@dataclass
class Acceptance:
    """Counts since `from_step`."""

    from_step: int = 0
    counts: Counter[Key] = field(default_factory=Counter)

    def add(self, batch: TileBatch, config: TilesConfig) -> None:
        """Count one batch."""
        scales = [scale_of(config, mpp) for mpp in batch.mpp.tolist()]
        self.counts.update(zip(batch.names, scales, ["taken"] * len(scales), strict=True))
        self.counts.update((tried.name, scale_of(config, tried.mpp), tried.why) for tried in batch.rejected)

    def rows(self) -> list[AcceptanceRow]:
        """One row a slide and µm/px, in order."""
        places = sorted({key[:2] for key in self.counts})
        return [AcceptanceRow(*place, *(self.counts[(*place, outcome)] for outcome in OUTCOMES)) for place in places]


def scale_of(config: TilesConfig, mpp: float) -> float:
    """The µm/px under which a drawn one is counted: itself, or the middle of its part of a continuous range."""
    if not isinstance(config.mpp, MppRange) or config.mpp.high == config.mpp.low:
        return mpp
    forth, back = (math.log, math.exp) if config.mpp.law == "log" else (float, float)
    low, high = forth(config.mpp.low), forth(config.mpp.high)
    part = min(max(int((forth(mpp) - low) / (high - low) * PARTS), 0), PARTS - 1)
    return float(f"{back(low + (part + 0.5) / PARTS * (high - low)):.3g}")


def keep_acceptance(path: PathLike, step: int, acceptance: Acceptance) -> None:
    """Write the counts at `step` in front of those of the last saves. Atomic; raises OutputError."""
    saves = [(step, acceptance), *((at, old) for at, old in _saved(path) if at < step)][:SAVES]
    columns: dict[str, list[object]] = {name: [] for name in ("step", "from_step", *AcceptanceRow._fields)}
    for at, save in saves:
        for row in save.rows():
            for name, value in zip(columns, (at, save.from_step, *row), strict=True):
                columns[name].append(value)
    with atomic_path(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_acceptance(path: PathLike, step: int | None = None) -> Acceptance:
    """The counts kept at `step`, of the last save without. Counting begins at `step` where there are none.

    Raises DataError where the file cannot be read.
    """
    for at, acceptance in _saved(path):
        if step is None or at == step:
            return acceptance
    return Acceptance(step or 0)


def _saved(path: PathLike) -> Iterator[tuple[int, Acceptance]]:
    """The saves of the file, the last one first; none where there is no file."""
    try:
        table = pq.read_table(path).to_pylist()
    except FileNotFoundError:
        return
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it to count anew") from error
    for step in sorted({row["step"] for row in table}, reverse=True):
        rows = [row for row in table if row["step"] == step]
        counts = Counter[Key]()
        for row in rows:
            counts.update({(row["slide"], row["mpp"], outcome): row[outcome] for outcome in OUTCOMES if row[outcome]})
        yield step, Acceptance(rows[0]["from_step"], counts)
