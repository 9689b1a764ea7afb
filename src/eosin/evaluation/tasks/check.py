"""Checks of the data of a task: layout, counts, classes, images that decode, splits that share nothing.

Each finding is one line. The quick check reads a sample of the images; the full one reads all of them, looks
for files with the same content in two splits, and compares published checksums.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from eosin.errors import DataError, EosinError
from eosin.evaluation.tasks.images import ImageFiles, Images, hash_array
from eosin.evaluation.tasks.layout import PublicTask
from eosin.evaluation.tasks.masks import Masks
from eosin.evaluation.tasks.slides import SlideFiles
from eosin.evaluation.tasks.task import SPLITS, Task
from eosin.progress import progress_bar
from eosin.provenance import hash_file
from eosin.randomness import Words

SAMPLE = 32
"""Images that the quick check decodes."""
_CORNER = 64
"""Side, level-0 px, of what is read of a slide."""


@dataclass(frozen=True)
class Report:
    """What a check found: `broken` must be mended, `remarks` should be known. `counts`: samples of each split."""

    name: str
    kind: str
    place: str
    counts: dict[str, int] = field(default_factory=dict)
    broken: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing is broken."""
        return not self.broken


def check_task(task: Task, full: bool = False, md5: dict[str, str] | None = None) -> Report:
    """Check what lies on the disk for `task`; `md5`: known checksums of files below its source (full check only)."""
    broken = [*_undecodable(task, full)]
    if full:
        broken += _wrong_md5(task.source, md5 or {})
        broken += _same_in_two_splits(task)
    remarks = []
    if shared := task.shared_groups():
        remarks.append(f"{shared} {task.group_name}s are in train and in {task.reported_split}: a leak")
    if not task.complete:
        remarks.append("other counts than the known ones")
    if task.group_name == "sample" and task.kind != "slide":
        remarks.append("patients and slides are not known: intervals are over images")
    return Report(task.name, task.kind, str(task.source), counts_of(task), tuple(broken), tuple(remarks))


def check_public(public: PublicTask, data: Path, full: bool = False, any_count: bool = False) -> Report:
    """Check a public task below `data`; a wrong layout is a finding as well."""
    try:
        task = public.open(data, any_count)
    except EosinError as error:
        return Report(public.name, public.kind, str(public.find(data) or data), broken=(str(error),))
    return check_task(task, full, public.md5)


def counts_of(task: Task) -> dict[str, int]:
    """Samples of each split, in order; {"samples": N} without splits."""
    if task.split is None:
        return {"samples": len(task)}
    found = Counter(task.split.tolist())
    return {split: found[split] for split in SPLITS if found[split]}


def _undecodable(task: Task, full: bool) -> Iterator[str]:
    """One line for the samples that cannot be read, the first of them by name."""
    rows = np.arange(len(task))
    if not full:
        rows = Words(0, "task check").permutations(len(task))[:SAMPLE]
    failed = []
    with progress_bar(f"{task.name}: reading", len(rows), "samples") as bar:
        for row in sorted(rows.tolist()):
            try:
                _read(task, row)
            except EosinError as error:
                failed.append(str(error))
            bar.advance()
    if failed:
        yield f"{failed[0]}{f' (and {len(failed) - 1} more)' if len(failed) > 1 else ''}"


def _read(task: Task, row: int) -> None:
    if isinstance(task.samples, SlideFiles):
        from eosin.slides import open_slide

        with open_slide(task.samples[row]) as slide:
            # The far corner is what a copy that was cut short lacks.
            side = min(_CORNER, slide.width, slide.height)
            slide.region(slide.width - side, slide.height - side, side, slide.mpp)
            return
    image = task.samples[row]
    if isinstance(task.targets, Masks) and task.targets[row].shape != image.shape[:2]:
        size, other = "x".join(map(str, image.shape[:2])), "x".join(map(str, task.targets[row].shape))
        raise DataError(f"image {task.ids[row]} is {size} px, its mask {other}")


def _same_in_two_splits(task: Task) -> Iterator[str]:
    """One line for samples of the same content that lie in different splits."""
    if task.split is None or task.images is None:
        return
    rows_of: dict[str, list[int]] = defaultdict(list)
    with progress_bar(f"{task.name}: comparing", len(task), "samples") as bar:
        for row, content in enumerate(_contents(task.images)):
            rows_of[content].append(row)
            bar.advance()
    twice = [rows for rows in rows_of.values() if len({task.split[row] for row in rows}) > 1]
    if twice:
        first, second = twice[0][0], next(row for row in twice[0] if task.split[row] != task.split[twice[0][0]])
        names = f"{task.ids[first]} ({task.split[first]}) and {task.ids[second]} ({task.split[second]})"
        yield f"{len(twice)} images lie in two splits with the same content, first {names}"


def _contents(images: Images) -> Iterable[str]:
    """Hash of each image: of its file where it has one, else of its pixels."""
    if isinstance(images, ImageFiles):
        return (hash_file(path) for path in images.paths)
    return (hash_array(images[row]) for row in range(len(images)))


def _wrong_md5(root: Path, known: dict[str, str]) -> Iterator[str]:
    for name, expected in known.items():
        with open(root / name, "rb") as handle:
            found = hashlib.file_digest(handle, "md5").hexdigest()
        if found != expected:
            yield f"{root / name} has md5 {found}, its owners publish {expected}"
