"""How many tries gave a tile, by slide and µm/px, and why the others did not: counted over a run, kept in its folder.

The counts belong to the tiles of the steps that were done, so a run that was stopped and resumed has those of one that
was not. The file holds the counts at the last few saves; a run that goes on from none of them counts anew from there.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
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
    """Write the counts at `step` in front of those of the last saves. Atomic; raises OutputError, DataError."""
    rows = acceptance.rows()
    columns = dict(zip(AcceptanceRow._fields, zip(*rows, strict=True), strict=True)) if rows else {}
    stamps = {"step": pa.array([step] * len(rows), pa.int64()), "from_step": [acceptance.from_step] * len(rows)}
    saves = [pa.table(stamps | columns)]
    if (before := _saved(path)) is not None:
        earlier = [at for at in _steps(before) if at < step][: SAVES - 1]
        saves += [before.filter(pc.equal(before["step"], at)) for at in earlier]
    with atomic_path(path) as temporary:
        pq.write_table(pa.concat_tables(saves, promote_options="permissive"), temporary)


def read_acceptance(path: PathLike, step: int | None = None) -> Acceptance:
    """The counts kept at `step`, of the last save without. Counting begins at `step` where there are none.

    Raises DataError where the file cannot be read.
    """
    table = _saved(path)
    steps = [] if table is None else _steps(table)
    chosen = step if step is not None else next(iter(steps), None)
    if table is None or chosen not in steps:
        return Acceptance(step or 0)
    rows = table.filter(pc.equal(table["step"], chosen)).to_pylist()
    counts = Counter[Key]()
    for row in rows:
        counts.update({(row["slide"], row["mpp"], outcome): row[outcome] for outcome in OUTCOMES if row[outcome]})
    return Acceptance(rows[0]["from_step"], counts)


def _steps(table: pa.Table) -> list[int]:
    """Steps that were saved, the last one first."""
    return sorted(pc.unique(table["step"]).to_pylist(), reverse=True)


def _saved(path: PathLike) -> pa.Table | None:
    """All saves of the file; None where there is no file."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read ({error}); remove it to count anew") from error
    if missing := {"step", "from_step", *AcceptanceRow._fields} - set(table.column_names):
        raise DataError(f"{path} has no column {min(missing)}; remove it to count anew")
    return table
