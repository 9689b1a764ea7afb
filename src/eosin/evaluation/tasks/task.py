"""A task: labelled samples with their split and with what makes some of them belong together (patient,
slide).

Built by folder.py, table.py and arrays.py, which know the layouts; checked here, once for all of them. Says
nothing about probes or protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.tasks.images import ImageArray, ImageFiles, hash_array
from eosin.provenance import hash_of

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

Kind = Literal["classification"]
Words1d = npt.NDArray[np.str_]


@dataclass(frozen=True)
class Task:
    """Samples of one task; row i of everything belongs to sample i, N samples.

    `samples`: images, or features float32 [N, D] that somebody computed already. `labels`: int64 [N], index
    into `classes`. `split`: train | val | test, or None for cross-validation. `patient`, `slide`, `site`: ids
    or None. `kind` decides probes and metrics; the first kind is tile classification.
    """

    name: str
    source: Path
    samples: ImageFiles | ImageArray | npt.NDArray[np.float32]
    ids: Words1d
    labels: npt.NDArray[np.int64]
    classes: tuple[str, ...]
    split: Words1d | None = None
    patient: Words1d | None = None
    slide: Words1d | None = None
    site: Words1d | None = None
    kind: Kind = "classification"

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def features(self) -> npt.NDArray[np.float32] | None:
        """Features that came with the task, or None where it holds images."""
        return self.samples if isinstance(self.samples, np.ndarray) else None

    @property
    def images(self) -> ImageFiles | ImageArray | None:
        """The images, or None where the task holds features."""
        return None if isinstance(self.samples, np.ndarray) else self.samples

    @property
    def group_name(self) -> str:
        """What samples are grouped by: patient, else slide, else each sample stands alone."""
        return "patient" if self.patient is not None else "slide" if self.slide is not None else "sample"

    @property
    def groups(self) -> npt.NDArray[np.int64] | None:
        """Group of each sample as int64 [N] from 0, or None where samples are not known to belong together."""
        ids = self.patient if self.patient is not None else self.slide
        return None if ids is None else np.unique(ids, return_inverse=True)[1].astype(np.int64)

    @property
    def reported_split(self) -> str | None:
        """The split that results are about: test, else val; None = cross-validation over everything."""
        if self.split is None:
            return None
        return "test" if "test" in self.split else "val"

    def content_hash(self) -> str:
        """Hash of the samples alone: what features depend on."""
        return hash_array(self.samples) if isinstance(self.samples, np.ndarray) else self.samples.content_hash()

    def label_hash(self) -> str:
        """Hash of labels, split and groups: what results depend on beside the features."""
        columns = [None if c is None else c.tolist() for c in (self.labels, self.split, self.patient, self.slide)]
        return hash_of([self.kind, self.classes, *columns])

    def shared_groups(self) -> int:
        """Patients (or slides) that lie in both the training part and the reported split: a leak if above 0."""
        groups = self.groups
        if groups is None or self.split is None:
            return 0
        reported = set(groups[self.split == self.reported_split].tolist())
        return len(reported & set(groups[self.split == "train"].tolist()))


def make_task(
    name: str,
    source: Path,
    samples: ImageFiles | ImageArray | npt.NDArray[np.float32],
    labels: Sequence[str],
    *,
    ids: Sequence[str],
    classes: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    patient: Sequence[str] | None = None,
    slide: Sequence[str] | None = None,
    site: Sequence[str] | None = None,
) -> Task:
    """Check the columns and build the task; labels are class names. Raises DataError with one line.

    Classes are in the order of `classes` where given, else by number if all are numbers, else by name.
    """
    order = list(classes) if classes is not None else class_order(labels)
    present = set(labels)
    if unknown := sorted(present - set(order)):
        raise DataError(f"task {name}: label {unknown[0]!r} in {source} is none of the classes {', '.join(order)}")
    if empty := [label for label in order if label not in present]:
        raise DataError(f"task {name}: class {empty[0]!r} in {source} has no samples")
    if len(order) < 2:
        raise DataError(f"task {name}: {source} has one class only ({order[0] if order else 'none'}); two are needed")
    number = {label: index for index, label in enumerate(order)}
    for column, values in (("split", split), ("patient", patient), ("slide", slide), ("site", site)):
        if values is not None and (blank := [row for row, value in enumerate(values) if not value.strip()]):
            raise DataError(f"task {name}: {len(blank)} samples of {source} have no {column}, first {ids[blank[0]]}")
    return Task(
        name=name,
        source=source,
        samples=samples,
        ids=np.asarray(ids, dtype=np.str_),
        labels=np.array([number[label] for label in labels], dtype=np.int64),
        classes=tuple(order),
        split=None if split is None else _checked_split(name, source, split, labels),
        patient=None if patient is None else np.asarray(patient, dtype=np.str_),
        slide=None if slide is None else np.asarray(slide, dtype=np.str_),
        site=None if site is None else np.asarray(site, dtype=np.str_),
    )


def class_order(labels: Sequence[str]) -> list[str]:
    """Distinct labels in order: by value if all are numbers, else by name."""
    names = sorted(set(labels))
    try:
        return sorted(names, key=float)
    except ValueError:
        return names


def _checked_split(name: str, source: Path, split: Sequence[str], labels: Sequence[str]) -> Words1d:
    words = [_SPLIT_WORDS.get(value.strip().lower(), "") for value in split]
    if "" in words:
        raise DataError(f"task {name}: split {split[words.index('')]!r} in {source} is none of {', '.join(SPLITS)}")
    found = set(words)
    if "train" not in found or len(found) < 2:
        listed = ", ".join(sorted(found))
        raise DataError(f"task {name}: {source} has split {listed} only; train and one of val, test are needed")
    train = {label for label, word in zip(labels, words, strict=True) if word == "train"}
    if missing := sorted(set(labels) - train):
        raise DataError(f"task {name}: class {missing[0]!r} in {source} has no training samples")
    return np.asarray(words, dtype=np.str_)
