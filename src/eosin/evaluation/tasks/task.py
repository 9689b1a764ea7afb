"""A task: samples, what is to be said of each, their split, and what makes some belong together (patient,
slide).

| kind | a sample | its target |
|---|---|---|
| classification | tile | class |
| robustness | tile of a known site (medical centre) | class; is it the class or the site that the features know? |
| slide | whole slide | class |
| segmentation | image | class of each pixel |
| regression | tile | numbers: expression of genes, a score |

Built by the readers beside this file, which know the layouts; checked here, once for all of them. Says
nothing about probes or protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.evaluation.tasks.bags import BagFiles
from eosin.evaluation.tasks.images import HashFile, Images, hash_array
from eosin.evaluation.tasks.masks import Masks
from eosin.evaluation.tasks.slides import SlideFiles
from eosin.provenance import hash_file, hash_of

SPLITS = ("train", "val", "test")
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

Kind = Literal["classification", "robustness", "slide", "segmentation", "regression"]
Words1d = npt.NDArray[np.str_]
Samples = Images | SlideFiles | BagFiles | npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64] | npt.NDArray[np.float32] | Masks

_CLASSED = ("classification", "robustness", "slide")


@dataclass(frozen=True)
class Task:
    """Samples of one task; row i of everything belongs to sample i, N samples.

    `samples`: images, slides, or what somebody computed already: features float32 [N, D], or bags of them. `targets`:
    int64 [N] index into `classes`; masks whose pixels index `classes`; or float32 [N, K], K values named by `classes`.
    `split`: train | val | test, or None for cross-validation; `fold` int64 [N]: the test fold of each sample
    where the task fixes the folds. `patient`, `slide`, `site`: ids or None. `shots`: training samples a
    class, drawn anew each run, where the task trains on few. `switches`: names of what eva does differently
    with this task (docs/evaluation.md). `complete`: False where a known task does not have its known counts.
    """

    name: str
    source: Path
    samples: Samples
    ids: Words1d
    targets: Targets
    classes: tuple[str, ...]
    split: Words1d | None = None
    patient: Words1d | None = None
    slide: Words1d | None = None
    site: Words1d | None = None
    kind: Kind = "classification"
    fold: npt.NDArray[np.int64] | None = None
    shots: int | None = None
    switches: tuple[str, ...] = ()
    complete: bool = True

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Class of each sample, int64 [N]. Raises DataError for a task whose targets are not classes."""
        if self.kind not in _CLASSED or not isinstance(self.targets, np.ndarray):
            raise DataError(f"task {self.name}: a {self.kind} task has no class for each sample")
        return self.targets.astype(np.int64, copy=False)

    @property
    def features(self) -> npt.NDArray[np.float32] | None:
        """Features that came with the task, or None where it holds images."""
        return self.samples if isinstance(self.samples, np.ndarray) else None

    @property
    def images(self) -> Images | None:
        """The images, or None where the task holds features or slides."""
        return None if isinstance(self.samples, np.ndarray | SlideFiles | BagFiles) else self.samples

    @property
    def slides(self) -> SlideFiles | None:
        """The slide files, or None where the task holds anything else."""
        return self.samples if isinstance(self.samples, SlideFiles) else None

    @property
    def bags(self) -> BagFiles | None:
        """Bags of tile features that came with the task, or None where it holds anything else."""
        return self.samples if isinstance(self.samples, BagFiles) else None

    @property
    def has_features(self) -> bool:
        """Whether features came with the task, so that no encoder is needed."""
        return isinstance(self.samples, np.ndarray | BagFiles)

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

    def content_hash(self, hashed: HashFile = hash_file) -> str:
        """Hash of the samples alone: what features depend on. `hashed` gives the hash of a file."""
        return hash_array(self.samples) if isinstance(self.samples, np.ndarray) else self.samples.content_hash(hashed)

    def label_hash(self) -> str:
        """Hash of targets, split and groups: what results depend on beside the features."""
        columns = [None if c is None else c.tolist() for c in (self.split, self.patient, self.slide)]
        if self.kind == "classification" and self.fold is None and self.shots is None:
            return hash_of([self.kind, self.classes, self.labels.tolist(), *columns])
        more = [None if c is None else c.tolist() for c in (self.site, self.fold)]
        targets = hash_array(self.targets) if isinstance(self.targets, np.ndarray) else self.targets.content_hash()
        return hash_of([self.kind, self.classes, targets, *columns, *more, self.shots])

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
    samples: Samples,
    labels: Sequence[str],
    *,
    ids: Sequence[str],
    classes: Sequence[str] | None = None,
    split: Sequence[str] | None = None,
    patient: Sequence[str] | None = None,
    slide: Sequence[str] | None = None,
    site: Sequence[str] | None = None,
    **more: Any,
) -> Task:
    """Check the columns and build a task of classes; labels are class names; `more`: further fields of Task.

    Raises DataError with one line.

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
    columns = checked_columns(name, source, ids, split, patient, slide, site)
    if columns["split"] is not None:
        train = {label for label, word in zip(labels, columns["split"], strict=True) if word == "train"}
        if missing := sorted(present - train):
            raise DataError(f"task {name}: class {missing[0]!r} in {source} has no training samples")
    return Task(
        name=name,
        source=source,
        samples=samples,
        ids=np.asarray(ids, dtype=np.str_),
        targets=np.array([number[label] for label in labels], dtype=np.int64),
        classes=tuple(order),
        **columns,
        **more,
    )


def checked_columns(
    name: str,
    source: Path,
    ids: Sequence[str],
    split: Sequence[str] | None = None,
    patient: Sequence[str] | None = None,
    slide: Sequence[str] | None = None,
    site: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The columns that every kind of task may have, as arrays. Raises DataError for blanks and unknown splits."""
    columns = {"split": split, "patient": patient, "slide": slide, "site": site}
    for column, values in columns.items():
        if values is not None and (blank := [row for row, value in enumerate(values) if not value.strip()]):
            raise DataError(f"task {name}: {len(blank)} samples of {source} have no {column}, first {ids[blank[0]]}")
    if split is not None:
        columns["split"] = _checked_split(name, source, split)
    return {column: None if values is None else np.asarray(values, dtype=np.str_) for column, values in columns.items()}


def class_order(labels: Sequence[str]) -> list[str]:
    """Distinct labels in order: by value if all are numbers, else by name."""
    names = sorted(set(labels))
    try:
        return sorted(names, key=float)
    except ValueError:
        return names


def _checked_split(name: str, source: Path, split: Sequence[str]) -> list[str]:
    words = [_SPLIT_WORDS.get(value.strip().lower(), "") for value in split]
    if "" in words:
        raise DataError(f"task {name}: split {split[words.index('')]!r} in {source} is none of {', '.join(SPLITS)}")
    found = set(words)
    if "train" not in found or len(found) < 2:
        listed = ", ".join(sorted(found))
        raise DataError(f"task {name}: {source} has split {listed} only; train and one of val, test are needed")
    return words
