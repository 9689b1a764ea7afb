"""Task from features that others computed: an eva manifest, or a folder with one feature file a slide and labels.csv.

| what | kind |
|---|---|
| manifest.csv, one vector a row | classification |
| manifest.csv with wsi_id, or several vectors in a file | slide: a bag is all rows of a wsi_id |
| DIR/SLIDE.h5 (TRIDENT's, CLAM's, ours) with DIR/labels.csv: slide, patient, label[, split, site] | slide |

Targets of eva are class numbers. Where the name is one of eva's for a public task, classes get their names, and eva's
val is the test split where the official test is what eva calls val; so results stand beside those from images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eosin.errors import DataError
from eosin.evaluation.tasks.bags import BagFiles, Floats
from eosin.evaluation.tasks.public import PUBLIC
from eosin.evaluation.tasks.task import Task, make_task
from eosin.features.h5 import read_features
from eosin.features.manifest import MANIFEST, Manifest, is_manifest, read_embeddings, read_manifest, read_vectors
from eosin.progress import say

EVA_NAMES = {
    "gleason_arvaniti": "gleason",
    "patch_camelyon": "pcam",
    "patch_camelyon_10shots": "pcam-10shot",
    "camelyon16_small": "camelyon16-small",
    "panda_small": "panda-small",
}
"""eva's name of a task -> ours, where they differ."""
TEST_IS_VAL = frozenset({"mhist", "unitopatho", "consep", "monusac"})
"""Tasks whose official test split eva calls val."""
LABELS = "labels.csv"
_GROUPS = ("patient", "slide", "site")


def holds_features(path: Path) -> bool:
    """Whether `path` is a manifest, a folder with one, or a folder of feature files with labels.csv."""
    return is_manifest(path) or bool(path.is_dir() and (path / LABELS).is_file() and _slide_files(path))


def read_kept(name: str, path: Path) -> Task:
    """The task whose features lie at `path`. Raises DataError, one line, for what is missing or does not fit."""
    if path.is_dir() and not (path / MANIFEST).is_file():
        return _of_folder(name, path)
    if path.name == MANIFEST and name == Path(MANIFEST).stem:  # nobody named the task: its folder does
        name = path.absolute().parent.name
    return _of_manifest(name, read_manifest(path))


def as_public(task: Task) -> Task:
    """Features of a public task as that task: with what eva does differently, few samples, and whether it is whole."""
    known = PUBLIC[task.name]
    found = Counter(["samples"] * len(task) if task.split is None else task.split.tolist())
    whole = known.counts is None or all(found[split] == count for split, count in known.counts.items())
    if not whole:
        say(f"task {task.name}: {task.source} has not the known number of samples: not the whole task")
    return replace(task, shots=known.shots, switches=tuple(known.switches), complete=whole)


def _of_manifest(name: str, manifest: Manifest) -> Task:
    name = EVA_NAMES.get(name, name)
    if manifest.target[0].endswith(".pt"):
        raise DataError(f"task {name}: {manifest.path} is of masks; segmentation is judged from images")
    target, classes = _classes(name, manifest)
    split = _split(name, manifest)
    bags = "wsi_id" in manifest.more or len(read_embeddings(manifest.files[0])) > 1
    columns = {key: manifest.more[key] for key in _GROUPS if key in manifest.more and "" not in manifest.more[key]}
    if ignored := [key for key in manifest.more if key not in (*columns, "wsi_id")]:
        say(f"task {name}: columns not used: {', '.join(ignored)}")
    if not bags:
        unique = len(set(manifest.origin)) == len(manifest)
        ids = manifest.origin if unique else [str(file.relative_to(manifest.path.parent)) for file in manifest.files]
        words: dict[str, Any] = {"ids": ids, "classes": classes, "split": split, **columns}
        return make_task(name, manifest.path, read_vectors(manifest), target, **words)
    return _of_bags(name, manifest, target, classes, split, columns)


def _of_bags(
    name: str,
    manifest: Manifest,
    target: list[str],
    classes: Sequence[str] | None,
    split: list[str] | None,
    columns: dict[str, list[str]],
) -> Task:
    """Rows of one wsi_id together; without that column each row is a slide."""
    named = manifest.more.get("wsi_id", manifest.origin)
    rows: dict[str, list[int]] = {}
    for row, slide in enumerate(named):
        if not slide:
            raise DataError(f"task {name}: {manifest.path} line {row + 2} has no wsi_id")
        rows.setdefault(slide, []).append(row)
    told: dict[str, list[str]] = {"target": target, **({} if split is None else {"split": split}), **columns}
    for slide, own in rows.items():
        for key, column in told.items():
            if len({column[row] for row in own}) > 1:
                words = " and ".join(sorted({column[row] for row in own})[:2])
                raise DataError(f"task {name}: slide {slide} in {manifest.path} has the {key} {words}; it can have one")
    first = [own[0] for own in rows.values()]
    once = {key: [column[row] for row in first] for key, column in told.items()}
    samples: Any = BagFiles([[manifest.files[row] for row in own] for own in rows.values()], read_embeddings)
    labels = once.pop("target")
    more: dict[str, Any] = {"slide": list(rows), **once, "kind": "slide"}
    return make_task(name, manifest.path, samples, labels, ids=list(rows), classes=classes, **more)


def _classes(name: str, manifest: Manifest) -> tuple[list[str], list[str] | None]:
    """Class of each row in words, and all classes where the public task of that name has its own."""
    words = []
    for row, word in enumerate(manifest.target):
        try:
            number = float(word)
            words.append(str(int(number)) if number == int(number) else word)
        except (ValueError, OverflowError) as error:
            said = f"line {row + 2}: target {word!r} is no class number"
            raise DataError(f"task {name}: {manifest.path} {said}") from error
    known = PUBLIC[name].classes if name in PUBLIC else ()
    if set(words) == {str(number) for number in range(len(known))}:
        return [known[int(word)] for word in words], list(known)
    return words, None


def _split(name: str, manifest: Manifest) -> list[str] | None:
    if not any(manifest.split):
        return None
    if name in TEST_IS_VAL and "test" not in manifest.split:
        return ["test" if word == "val" else word for word in manifest.split]
    return manifest.split


def _of_folder(name: str, folder: Path) -> Task:
    """Slides of labels.csv that have a feature file; how many have none is said."""
    from eosin.evaluation.mil.label_file import read_label_file, slide_name  # that package knows tasks

    files = {slide_name(file.name): file for file in _slide_files(folder)}
    table = read_label_file(folder / LABELS)
    columns = table.columns
    if "label" not in columns:
        raise DataError(f"task {name}: looked for a column `label` in {table.path}, found {', '.join(columns)}")
    slides = columns["slide"]
    rows = [row for row, slide in enumerate(slides) if slide in files]
    if not rows:
        raise DataError(f"task {name}: none of the slides of {table.path} has a feature file, such as {slides[0]}.h5")
    if missing := len(slides) - len(rows):
        say(f"task {name}: {missing} of {len(slides)} slides of {table.path} have no feature file")
    kept = {key: [columns[key][row] for row in rows] for key in ("label", "split", "patient", "site") if key in columns}
    ids = [slides[row] for row in rows]
    samples: Any = BagFiles([[files[slide]] for slide in ids], _read_slide)
    labels = kept.pop("label")
    if "" in labels:
        raise DataError(f"task {name}: slide {ids[labels.index('')]} in {table.path} has no label")
    return make_task(name, folder, samples, labels, ids=ids, slide=ids, kind="slide", **kept)  # type: ignore[arg-type]


def _read_slide(file: Path) -> Floats:
    return read_features(file).features


def _slide_files(folder: Path) -> list[Path]:
    """Feature files of slides in a folder, as TRIDENT (ours too) and CLAM lay them out."""
    for place, suffix in ((folder, ".h5"), (folder / "h5_files", ".h5"), (folder / "pt_files", ".pt")):
        if found := sorted(file for file in place.glob(f"*{suffix}") if not file.name.startswith(".")):
            return found
    return []
