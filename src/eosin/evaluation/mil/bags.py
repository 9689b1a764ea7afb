"""Features of slides as bags: read where they lie, checked once before any training, kept while memory allows.

A folder of <slide>.h5 (eosin's and TRIDENT's layout), CLAM's h5_files/ or pt_files/, or a Parquet table `slide, vector`
with one vector a slide (TITAN, PRISM, CHIEF, Prov-GigaPath ...). A bag is one slide, or all slides of a patient.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.mil.label_file import slide_name
from eosin.evaluation.mil.labels import LabelTable, TaskLabels
from eosin.files import PathLike
from eosin.progress import progress_bar, say

Features = npt.NDArray[np.float32]
T = TypeVar("T")
Group = Literal["slide", "patient", "average"]
GROUPS: tuple[Group, ...] = ("slide", "patient", "average")
EMBEDDING_FILE = "embedding.json"


@dataclass
class FeatureSource:
    """Slides with features; `info` says what made them (model, model_hash, mpp, size, training ... where known).

    `paths`: file of each slide, or `vectors`: one vector of each. `budget`: bytes of features kept in memory. `models`:
    hashes (or names) of models that the files read so far state.
    """

    root: Path
    paths: dict[str, Path] = field(default_factory=dict)
    vectors: dict[str, Features] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    budget: int = 8 * 2**30
    models: set[str] = field(default_factory=set)
    _kept: OrderedDict[str, Features] = field(default_factory=OrderedDict)
    _bytes: int = 0

    @property
    def slides(self) -> list[str]:
        """Names of all slides that have features."""
        return list(self.paths or self.vectors)

    def read(self, slide: str) -> Features:
        """Features of a slide, float32 [N, D]. Raises DataError naming it where they cannot be read."""
        if slide in self._kept:
            self._kept.move_to_end(slide)
            return self._kept[slide]
        found = self._load(slide)
        if found.nbytes <= self.budget:
            self._kept[slide] = found
            self._bytes += found.nbytes
            while self._bytes > self.budget:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return found

    def check(self, slides: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Read every slide once; {slide: (tiles, checksum)}. Raises DataError for the first that cannot be used:
        empty, not finite, of another width or another model than the first.
        """
        found: dict[str, tuple[int, int]] = {}
        width, first = 0, slides[0]
        with progress_bar("features", len(slides), "slide") as bar:
            for slide in slides:
                features = self._load(slide)
                if features.ndim != 2 or not len(features):
                    raise DataError(f"slide {slide} in {self.root} has no tiles; embed it again or drop its labels")
                if not np.isfinite(features).all():
                    rows = int((~np.isfinite(features).all(axis=1)).sum())
                    raise DataError(f"slide {slide} in {self.root} has NaN or infinite features in {rows} tiles")
                if width and features.shape[1] != width:
                    raise DataError(
                        f"features of mixed width in {self.root}: {first} has {width}, {slide} has {features.shape[1]}"
                    )
                width = features.shape[1]
                if len(self.models) > 1:
                    raise DataError(
                        f"features of several models in {self.root}: {', '.join(sorted(self.models))} (slide {slide});"
                        " one folder a model"
                    )
                found[slide] = len(features), zlib.crc32(np.ascontiguousarray(features).data)
                if self._bytes + features.nbytes <= self.budget:
                    self._bytes += features.nbytes if slide not in self._kept else 0
                    self._kept[slide] = features
                bar.advance()
        self.info["width"] = width
        return found

    def _load(self, slide: str) -> Features:
        """Features of a slide; what its file states of the model goes into `info` and `models`."""
        if self.vectors:
            return self.vectors[slide][None]
        from eosin.features.h5 import read_features

        found = read_features(self.paths[slide])
        stated = {key: _plain(value) for key, value in found.attributes.items()}
        stated.setdefault("model", stated.get("encoder"))
        for key in ("model", "model_hash", "mpp"):
            if stated.get(key) not in (None, ""):
                self.info.setdefault(key, stated[key])
        model = str(stated.get("model_hash") or stated.get("model") or "")
        self.models |= {model} - {""}
        return np.asarray(found.features, dtype=np.float32)


def open_features(path: PathLike, memory_gb: float = 8.0) -> FeatureSource:
    """The features in a folder, or in a Parquet table `slide, vector`. Raises DataError where there are none."""
    path = Path(path)
    budget = int(memory_gb * 2**30)
    if path.is_file() and path.suffix == ".parquet":
        return FeatureSource(path, vectors=_vectors(path), info={"model": path.stem} | _stated(path), budget=budget)
    if not path.is_dir():
        what = (
            "is a cohort or a single file; run `eosin embed` first and give its folder"
            if path.exists()
            else "is missing"
        )
        raise DataError(f"features {path}: {what}")
    for folder, suffix in ((path, ".h5"), (path / "h5_files", ".h5"), (path, ".pt"), (path / "pt_files", ".pt")):
        files = sorted(file for file in folder.glob(f"*{suffix}") if not file.name.startswith("."))
        if files:
            break
    else:
        raise DataError(f"features {path}: no <slide>.h5, h5_files/ or pt_files/ there; run `eosin embed` first")
    names = [slide_name(file.stem) for file in files]
    return FeatureSource(path, paths=_by_slide(path, names, files), info=_embedding(path), budget=budget)


def _by_slide(path: Path, slides: Sequence[str], what: Sequence[T]) -> dict[str, T]:
    """What there is of each slide; DataError where a slide is there twice."""
    if repeated := [slide for slide, count in Counter(slides).items() if count > 1]:
        raise DataError(f"slide features {path} hold {repeated[0]} twice; one file or vector a slide")
    return dict(zip(slides, what, strict=True))


def _embedding(folder: Path) -> dict[str, Any]:
    """What `eosin embed` wrote down about the features; nothing where others made them."""
    file = folder / EMBEDDING_FILE
    if not file.is_file():
        return {}
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from error
    return dict(said) if isinstance(said, dict) else {}


def _stated(path: Path) -> dict[str, Any]:
    """What `eosin embed --stage` wrote into a table of vectors; nothing where others made it."""
    from pyarrow import ArrowInvalid, parquet

    try:
        said = json.loads((parquet.read_schema(path).metadata or {}).get(b"eosin.embedding", b"{}"))
    except (OSError, ArrowInvalid, ValueError) as error:
        raise DataError(f"cannot read slide features {path}: {error}") from error
    return dict(said) if isinstance(said, dict) else {}


def _vectors(path: Path) -> dict[str, Features]:
    from pyarrow import ArrowInvalid, parquet

    try:
        table = parquet.read_table(path)
    except (OSError, ArrowInvalid) as error:
        raise DataError(f"cannot read slide features {path}: {error}") from error
    if not {"slide", "vector"} <= set(table.column_names):
        raise DataError(f"slide features {path} need columns slide and vector, found {', '.join(table.column_names)}")
    slides = [slide_name(str(slide)) for slide in table["slide"].to_pylist()]
    vectors = [
        np.asarray(vector if vector is not None else [], dtype=np.float32) for vector in table["vector"].to_pylist()
    ]
    return _by_slide(path, slides, vectors)


def _plain(value: Any) -> Any:
    """An attribute as JSON can hold it."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True, eq=False)
class Bags:
    """B bags with labels: `names` (slide, or patient where bags are patients), slides and patient of each.

    `table` holds patients, sites and labels of the bags, row i for bag i; `tiles` [B] how many each has.
    """

    source: FeatureSource
    group: Group
    table: LabelTable
    members: tuple[tuple[str, ...], ...]
    tiles: npt.NDArray[np.int64]
    checksum: str

    def __len__(self) -> int:
        return len(self.members)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of each bag."""
        return self.table.slides

    @property
    def width(self) -> int:
        """Numbers a tile."""
        return int(self.source.info["width"])

    def read(self, number: int) -> Features:
        """Tiles of a bag, float32 [N, D], slides one after another."""
        parts = [self.source.read(slide) for slide in self.members[number]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def make_bags(source: FeatureSource, table: LabelTable, group: Group) -> Bags:
    """Bags of the labelled slides that have features; says how many have none. Raises DataError if none is left."""
    known = set(source.slides)
    rows = np.array([row for row, slide in enumerate(table.slides) if slide in known], dtype=np.int64)
    missing = [slide for slide in table.slides if slide not in known]
    if missing:
        listed = ", ".join(missing[:3]) + (" ..." if len(missing) > 3 else "")
        line = f"{len(missing)} of {len(table)} labelled slides have no features in {source.root}: {listed}"
        other_case = {slide.casefold(): slide for slide in known}
        if near := next((slide for slide in missing if slide.casefold() in other_case), None):
            line += f"; {near} differs from {other_case[near.casefold()]} in upper and lower case"
        if not len(rows):
            raise DataError(f"{line}; there {source.slides[0]} is found: slide names must agree")
        say(line)
    if spare := len(known) - len(rows):
        say(f"{spare} slides with features have no label and are not used")
    table = table.take(rows)
    sizes = source.check(table.slides)
    members: tuple[tuple[str, ...], ...] = tuple((slide,) for slide in table.slides)
    if group == "patient":
        table, members = _by_patient(table)
    tiles = np.array([sum(sizes[slide][0] for slide in slides) for slides in members], dtype=np.int64)
    checksum = f"{zlib.crc32(json.dumps(sorted(sizes.items())).encode()):08x}"
    return Bags(source, group, table, members, tiles, checksum)


def _by_patient(table: LabelTable) -> tuple[LabelTable, tuple[tuple[str, ...], ...]]:
    """One row a patient, in order of first appearance, and the slides of each."""
    rows: dict[str, list[int]] = {}
    for row, patient in enumerate(table.patients):
        rows.setdefault(patient, []).append(row)
    tasks = []
    for task in table.tasks:
        chosen = [patient_row(task, patient, found) for patient, found in rows.items()]
        merged = task.take(np.array(chosen, dtype=np.int64))
        tasks.append(replace(merged, split=_patient_splits(task, rows)))
    first = np.array([found[0] for found in rows.values()], dtype=np.int64)
    whole = replace(table.take(first), slides=tuple(rows), patients=tuple(rows), tasks=tuple(tasks))
    return whole, tuple(tuple(table.slides[row] for row in found) for found in rows.values())


def patient_row(task: TaskLabels, patient: str, rows: Sequence[int]) -> int:
    """The row whose label holds for the patient: any that has one. Raises DataError where slides disagree."""
    known = [row for row in rows if task.known[row]]
    if any(not np.array_equal(task.values[row], task.values[known[0]]) for row in known):
        raise DataError(
            f"task {task.name}: slides of patient {patient} have different labels; use --group slide for this task"
        )
    return known[0] if known else rows[0]


def _patient_splits(task: TaskLabels, rows: dict[str, list[int]]) -> tuple[str, ...]:
    if not task.split:
        return ()
    found = []
    for patient, own in rows.items():
        words = sorted({task.split[row] for row in own} - {""})
        if len(words) > 1:
            raise DataError(f"patient {patient} is on both sides of the given split ({', '.join(words)})")
        found.append(words[0] if words else "")
    return tuple(found)
