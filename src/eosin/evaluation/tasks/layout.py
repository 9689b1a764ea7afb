"""What a public task is: its official layout, classes, split and counts, as data; and how it is found on a disk.

Each file in `public/` describes one or a few and has a `read` of a few lines that lists the rows; everything
else is done here, once: finding the folder, refusing a wrong layout in one line, counting.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageFiles
from eosin.evaluation.tasks.masks import Masks
from eosin.evaluation.tasks.slides import SlideFiles
from eosin.evaluation.tasks.task import Kind, Samples, Task, checked_columns, make_task
from eosin.files import PathLike
from eosin.progress import say


class Row(NamedTuple):
    """One sample: its file, the class it has, where it belongs.

    `mask`: its mask file in a segmentation task. `id`: where the file alone does not name it.
    """

    file: Path
    label: str = ""
    split: str | None = None
    patient: str | None = None
    slide: str | None = None
    site: str | None = None
    mask: Path | None = None
    id: str = ""


@dataclass(frozen=True)
class PublicTask:
    """A task that is known by name.

    `folders`: names that its root folder goes by, below what `--data` names; `marks`: paths that its root
    folder must hold. `counts`: samples in each split, None where they are not known. `read` lists the rows in
    a root folder, in a fixed order; `samples` makes of root and rows what an encoder reads (default: images),
    `masks` makes masks of mask files; `build` makes the whole task where rows do not suffice. `source`, `get`:
    where it comes from and what to do; `scale`: size and µm/px. `switches`: what eva does differently, by
    name. `md5`: of files, where their owners publish them.
    """

    name: str
    about: str
    classes: tuple[str, ...]
    counts: dict[str, int] | None
    folders: tuple[str, ...]
    marks: tuple[str, ...]
    read: Callable[[Path], Iterable[Row]]
    layout: tuple[str, ...]
    source: str
    licence: str
    scale: str
    kind: Kind = "classification"
    get: tuple[str, ...] = ()
    switches: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    md5: dict[str, str] = field(default_factory=dict)
    shots: int | None = None
    samples: Callable[[Path, list[Row]], Samples] | None = None
    masks: Callable[[list[Path]], Masks] | None = None
    build: Callable[[str, Path], Task] | None = None

    def roots(self, place: PathLike) -> list[Path]:
        """Folders that are looked at, in order, where `place` holds this task's data or those of many."""
        bases = [Path(place) / self.name, Path(place)]
        return list(dict.fromkeys(base / folder for base in bases for folder in ("", *self.folders)))

    def find(self, place: PathLike) -> Path | None:
        """The root folder at or below `place`: the first that holds all marks; None without one."""
        return next((root for root in self.roots(place) if not self._missing(root)), None)

    def begun(self, place: PathLike) -> bool:
        """Whether a folder of this task's is at `place`, complete or not."""
        return any((Path(place) / name).is_dir() for name in (self.name, *self.folders)) or bool(self.find(place))

    def open(self, place: PathLike, any_count: bool = False) -> Task:
        """The task in its official layout at or below `place`.

        Raises DataError, one line, for a wrong layout, and for other counts than the known ones unless
        `any_count`: then that is said, and the task is marked as not complete.
        """
        root = self.find(place)
        if root is None:
            raise DataError(self._not_found(place))
        if self.build is not None:
            return self.build(self.name, root)
        rows = list(self.read(root))
        if not rows:
            raise DataError(f"task {self.name}: found no samples in {root}; `eosin tasks show {self.name}`")
        wrong = self._miscounted(rows)
        if wrong and not any_count:
            raise DataError(f"task {self.name}: {wrong} in {root}; --any-count takes it as it is")
        if wrong:
            say(f"task {self.name}: {wrong} in {root}: not the whole task")
        return self._task(rows, root, complete=not wrong)

    def _task(self, rows: list[Row], root: Path, complete: bool) -> Task:
        ids = [row.id or row.file.relative_to(root).as_posix() for row in rows]
        samples = ImageFiles([row.file for row in rows]) if self.samples is None else self.samples(root, rows)
        columns: dict[str, Any] = {key: _column(rows, key) for key in ("split", "patient", "slide", "site")}
        more: dict[str, Any] = {
            "kind": self.kind,
            "shots": self.shots,
            "switches": tuple(self.switches),
            "complete": complete,
        }
        if self.kind == "segmentation":
            paths = [row.mask for row in rows if row.mask is not None]
            masks = Masks(paths, len(self.classes)) if self.masks is None else self.masks(paths)
            checked = checked_columns(self.name, root, ids, **columns)
            return Task(self.name, root, samples, np.asarray(ids), masks, self.classes, **checked, **more)
        labels = [row.label for row in rows]
        return make_task(self.name, root, samples, labels, ids=ids, classes=self.classes, **columns, **more)

    def _miscounted(self, rows: list[Row]) -> str:
        """What is wrong with the number of samples; "" where nothing is."""
        if self.counts is None:
            return ""
        found = Counter(row.split or "samples" for row in rows)
        wrong = [
            f"{found[split]} {'' if split == 'samples' else f'{split} '}samples, expected {count}"
            for split, count in self.counts.items()
            if found[split] != count
        ]
        return "; ".join(wrong)

    def _missing(self, root: Path) -> list[str]:
        return [mark for mark in self.marks if not (root / mark).exists()]

    def _not_found(self, place: PathLike) -> str:
        """One line: the root that comes closest, and what it lacks."""
        root = min(self.roots(place), key=lambda root: (len(self._missing(root)), not root.is_dir()))
        missing = self._missing(root)
        if len(missing) == len(self.marks):
            places = " or ".join(dict.fromkeys(str(Path(place) / name) for name in (self.name, *self.folders)))
            marks = ", ".join(self.marks)
            return f"task {self.name}: looked for {marks} in {places}, found none; see `eosin tasks show {self.name}`"
        return f"task {self.name}: {root} lacks {', '.join(missing)}; `eosin tasks show {self.name}` has the layout"


def files_in(root: Path, *patterns: str) -> list[Path]:
    """Files that match glob patterns below `root`, sorted by path; files of the system (._x) are left out."""
    found = {path for pattern in patterns for path in root.glob(pattern) if not path.name.startswith(".")}
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def slides_of(root: Path, rows: list[Row], mpp: float, tiles: int) -> SlideFiles:
    """The slides of the rows: bags of up to `tiles` tiles at `mpp` µm/px."""
    return SlideFiles([row.file for row in rows], mpp, tiles)


def read_csv(path: Path, *columns: str, **options: Any) -> pandas.DataFrame:
    """A table as strings. Raises DataError where it cannot be read or lacks one of `columns`."""
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", **options)
    except (OSError, ValueError) as error:  # pandas' parser errors and bad encodings are ValueErrors
        raise DataError(f"cannot read table {path}: {error}") from error
    for column in columns:
        if column not in table.columns:
            raise DataError(f"{path}: looked for a column `{column}`, found {', '.join(map(str, table.columns))}")
    return table


def refuse_missing(table: Path, files: list[Path]) -> None:
    """Raise DataError where files that `table` lists are missing."""
    if missing := [file for file in files if not file.is_file()]:
        raise DataError(f"{len(missing)} of {len(files)} files that {table} lists are missing, first {missing[0]}")


def _column(rows: list[Row], key: str) -> list[str] | None:
    """A column of the rows, or None where no row has it."""
    values = [getattr(row, key) for row in rows]
    return None if all(value is None for value in values) else [value or "" for value in values]
