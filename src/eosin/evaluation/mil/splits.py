"""Who trains, who stops the training early, who is reported: the protocols of `eosin mil train`.

| protocol | train / val / test | runs |
|---|---|---|
| exaone | the given split; val = a patient-wise 20 % of train, drawn anew for each seed, where none is given | seeds |
| 5-fold | each fold is tested once; val = 20 % of the others | seeds x folds |
| hold-out | 70 / 10 / 20 % of the patients, drawn once | seeds |

A patient is never on two sides. 5-fold keeps sites whole where they are known: slides of one site look alike, and a
head that has seen the site scores too well (Howard et al., Nat Commun 2021). Parts are balanced over the labels of
all tasks at once by placing patients (or sites) one after another, rarest labels first, where they are missed most
(iterative stratification, Sechidis et al. 2011). The draws come from `randomness.Words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from eosin.errors import DataError
from eosin.provenance import hash_of
from eosin.randomness import Words

Rows = npt.NDArray[np.int64]
ProtocolName = Literal["exaone", "5-fold", "hold-out"]
PROTOCOLS: dict[str, int] = {"exaone": 4, "5-fold": 1, "hold-out": 4}
"""Names, with the seeds each runs by default; EXAONE reports the mean of four."""


class ProtocolConfig(BaseModel):
    """How a head is judged. `split_seed` draws folds and parts; the seeds of training are counted from 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ProtocolName
    folds: int = Field(5, ge=2, description="of 5-fold")
    val_share: float = Field(0.2, gt=0, lt=1, description="of the training patients that stop a run early")
    hold_out: tuple[float, float, float] = Field((0.7, 0.1, 0.2), description="train, val, test")
    sites: bool = Field(True, description="5-fold: keep sites whole where the table has them")
    draws: int = Field(2000, ge=1, description="bootstrap resamples of patients behind each interval")
    split_seed: int = Field(0, ge=0)

    @property
    def hash(self) -> str:
        """Hash of every setting."""
        return hash_of(self.model_dump(mode="json"))


class Subjects(NamedTuple):
    """What splits look at, for N bags: patient ids, site ids or None, given split words (or none), and the labels to
    balance, int64 [N, T], -1 missing, with names and kinds of the tasks.
    """

    patients: Sequence[str]
    sites: Sequence[str] | None
    split: Sequence[str]
    strata: npt.NDArray[np.int64]
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]


class Run(NamedTuple):
    """One training: bag numbers that fit, stop and report it."""

    seed: int
    fold: int
    train: Rows
    val: Rows
    test: Rows


def plan_runs(config: ProtocolConfig, subjects: Subjects, seeds: int) -> list[Run]:
    """The runs of a protocol, seed by seed. Raises DataError, one line, where it cannot be followed."""
    if config.name == "exaone":
        runs = _given(config, subjects, seeds)
    elif config.name == "hold-out":
        part = spread(subjects.patients, subjects.strata, config.hold_out, Words(config.split_seed, "mil", "hold-out"))
        train, val, test = (np.flatnonzero(part == number) for number in range(3))
        runs = [Run(seed, 0, train, val, test) for seed in range(seeds)]
    else:
        runs = _folds(config, subjects, seeds)
    for run in runs:
        _check(run, subjects, config)
    return runs


def spread(
    groups: Sequence[str], strata: npt.NDArray[np.int64], shares: Sequence[float], words: Words
) -> npt.NDArray[np.int64]:
    """Part number of each of N samples, int64 [N]: parts get `shares` (sum 1) of every label, groups stay whole.

    groups: [N] ids. strata: int64 [N, T], -1 = unknown. Greedy: groups that hold most of rare labels first, each into
    the part whose squared filling, relative to its share, grows least; ties go to the emptiest part.
    """
    member = np.unique(np.asarray(groups), return_inverse=True)[1]
    counts = _label_counts(member, strata)  # [G, L]
    size = np.bincount(member).astype(np.float64)  # [G]
    total = np.maximum(counts.sum(axis=0), 1)  # [L]
    share = np.asarray(shares, dtype=np.float64)
    order = words.permutations(len(size))
    rarity = (counts / total).sum(axis=1)[order]
    order = order[np.argsort(-rarity, kind="stable")]

    filled, filled_size = np.zeros((len(share), counts.shape[1])), np.zeros(len(share))
    part = np.empty(len(size), dtype=np.int64)
    for group in order:
        labels, weight = counts[group], size[group]
        growth = ((2 * filled + labels) * labels / total).sum(axis=1) / share  # [parts]
        crowd = (2 * filled_size + weight) * weight / share
        best = int(np.lexsort((crowd, np.round(growth, 12)))[0])
        part[group] = best
        filled[best] += labels
        filled_size[best] += weight
    return part[member]


def _label_counts(member: Rows, strata: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """How many samples of each label each group has: float64 [G, L], the labels of all tasks side by side."""
    total = int(member.max()) + 1
    columns = []
    for values in strata.T:
        for label in np.unique(values[values >= 0]):
            columns.append(np.bincount(member, weights=(values == label).astype(np.float64), minlength=total))
    return np.stack(columns, axis=1) if columns else np.zeros((total, 1))


def _validation(config: ProtocolConfig, subjects: Subjects, rows: Rows, *key: int | str) -> tuple[Rows, Rows]:
    """`rows` divided by patient into those that train and those that stop the training."""
    patients = [subjects.patients[row] for row in rows]
    shares = (1 - config.val_share, config.val_share)
    part = spread(patients, subjects.strata[rows], shares, Words(config.split_seed, "mil", "val", *key))
    return rows[part == 0], rows[part == 1]


def _given(config: ProtocolConfig, subjects: Subjects, seeds: int) -> list[Run]:
    words = np.asarray(subjects.split, dtype=np.str_)
    if not len(words):
        raise DataError(
            "protocol exaone needs the published division in a column `split` (train, test) of the label table;"
            " without one use --protocol 5-fold or hold-out"
        )
    train, val, test = (np.flatnonzero(words == word) for word in ("train", "val", "test"))
    for name, rows in (("train", train), ("test", test)):
        if not len(rows):
            raise DataError(f"task {', '.join(subjects.tasks)}: no labelled bag with features has split `{name}`")
    sides: dict[str, set[str]] = {}
    for row in np.concatenate([train, val, test]):
        sides.setdefault(subjects.patients[row], set()).add(str(words[row]))
    if both := sorted(patient for patient, found in sides.items() if len(found) > 1):
        raise DataError(
            f"{len(both)} patients are on both sides of the given split, first {both[0]}"
            f" ({', '.join(sorted(sides[both[0]]))}); a patient belongs to one part"
        )
    runs = []
    for seed in range(seeds):
        fit, stop = (train, val) if len(val) else _validation(config, subjects, train, "exaone", seed)
        runs.append(Run(seed, 0, fit, stop, test))
    return runs


def _folds(config: ProtocolConfig, subjects: Subjects, seeds: int) -> list[Run]:
    keep_sites = config.sites and subjects.sites is not None
    groups = list(subjects.patients)
    if keep_sites:
        assert subjects.sites is not None
        groups = list(subjects.sites)
        _explain_sites(config, subjects, groups)
    name = "sites" if keep_sites else "patients"
    if len(set(groups)) < config.folds:
        raise DataError(f"{config.folds} folds need at least as many {name}, found {len(set(groups))}; lower --folds")
    shares = [1 / config.folds] * config.folds
    number = spread(groups, subjects.strata, shares, Words(config.split_seed, "mil", "folds"))
    runs = []
    for seed in range(seeds):
        for fold in range(config.folds):
            rest = np.flatnonzero(number != fold)
            train, val = _validation(config, subjects, rest, "folds", seed, fold)
            runs.append(Run(seed, fold, train, val, np.flatnonzero(number == fold)))
    return runs


def _explain_sites(config: ProtocolConfig, subjects: Subjects, sites: list[str]) -> None:
    """Refuse site-preserved folds that cannot exist, saying why and what else to do."""
    where: dict[str, set[str]] = {}
    for patient, site in zip(subjects.patients, sites, strict=True):
        where.setdefault(patient, set()).add(site)
    if several := sorted(patient for patient, found in where.items() if len(found) > 1):
        raise DataError(
            f"patient {several[0]} has slides of sites {', '.join(sorted(where[several[0]]))}; one is needed"
        )
    way_out = "lower --folds, or let sites mix with --set protocol.sites=false"
    names = np.asarray(sites)
    for number, task in enumerate(subjects.tasks):
        if subjects.kinds[number] not in ("binary", "classification"):
            continue
        values = subjects.strata[:, number]
        for label in np.unique(values[values >= 0]):
            found = len(np.unique(names[values == label]))
            if found < config.folds:
                raise DataError(
                    f"task {task}: folds that keep sites whole are impossible: a class occurs at {found} of"
                    f" {len(set(sites))} sites and {config.folds} folds must each test it; {way_out}"
                )


def _check(run: Run, subjects: Subjects, config: ProtocolConfig) -> None:
    """Each part holds what its use needs: labels of two classes to fit and to report, anything to stop."""
    sides = (run.train, run.val, run.test)
    patients = [{subjects.patients[row] for row in rows} for rows in sides]
    assert sum(map(len, patients)) == len(set.union(*patients))
    where = f"fold {run.fold + 1}" if config.name == "5-fold" else f"protocol {config.name}"
    for number, task in enumerate(subjects.tasks):
        for name, rows in zip(("train", "val", "test"), sides, strict=True):
            present = subjects.strata[rows, number]
            kinds = len(np.unique(present[present >= 0]))
            if kinds == 0:
                raise DataError(f"task {task}: {where} has no labelled bag in {name}; too few patients are labelled")
            if name == "val":
                continue
            if subjects.kinds[number] == "survival" and not (present == 1).any():
                raise DataError(f"task {task}: {where} has no event in {name} ({len(rows)} bags); use fewer folds")
            if kinds == 1 and subjects.kinds[number] in ("binary", "classification"):
                raise DataError(
                    f"task {task}: {where} has one class only in {name} ({len(rows)} bags);"
                    " use fewer folds, another split, or more patients of the rare class"
                )
