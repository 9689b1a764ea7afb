"""Does an encoder know the biology or the medical centre? Two measures on features, labels and sites.

Robustness index and average performance drop, after PathoROB (Kömen et al., arXiv 2507.17845). Both are
computed on features alone: knows no encoder and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score

from eosin.errors import DataError
from eosin.randomness import Words

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

C_GRID = tuple(10.0 ** np.linspace(-8, 4, 15))
"""Inverse regularisation of the logistic regressions, chosen on the validation slides."""
_ROWS = 1024


class Neighbours(NamedTuple):
    """Neighbours counted over all samples: same or other class (first word), same or other site (second)."""

    same_same: int
    same_other: int
    other_same: int
    other_other: int

    @property
    def robustness(self) -> float:
        """Same class of another site, against that and another class of the same site; NaN without either."""
        against = self.same_other + self.other_same
        return self.same_other / against if against else float("nan")


def robustness_index(
    features: npt.NDArray[np.float32],
    labels: Ints,
    sites: Ints,
    slides: Ints,
    k: int,
    blocks: Ints | None = None,
) -> Neighbours:
    """Classes and sites of the k nearest neighbours (cosine) of each sample: 1 is all biology, 0 all site.

    `features` [N, D]; `labels`, `sites`, `slides` int64 [N]. Samples of the same slide are no neighbours.
    `blocks` int64 [N]: samples are compared within their block only (TCGA 2 x 2: one pair of classes and
    sites a block). Raises DataError where a sample has fewer than k neighbours on other slides, or a
    feature vector is zero.
    """
    counts = neighbour_counts(features, labels, sites, slides, k, blocks).sum(axis=0)
    return Neighbours(*(int(count) for count in counts))


def neighbour_counts(
    features: npt.NDArray[np.float32],
    labels: Ints,
    sites: Ints,
    slides: Ints,
    k: int,
    blocks: Ints | None = None,
) -> Ints:
    """The same for each sample: int64 [N, 4], in the order of `Neighbours`, each row of sum k."""
    unit = _unit(features)
    blocks = np.zeros(len(labels), dtype=np.int64) if blocks is None else blocks
    counts = np.zeros((len(labels), 4), dtype=np.int64)
    for block in np.unique(blocks):
        rows = np.flatnonzero(blocks == block)
        refuse_few_neighbours(slides[rows], k)
        for first in range(0, len(rows), _ROWS):
            part = rows[first : first + _ROWS]
            near = rows[_nearest(unit, slides, part, rows, k)]  # [n, k]
            which = 2 * (labels[near] != labels[part, None]) + (sites[near] != sites[part, None])
            for place in range(4):
                counts[part, place] = (which == place).sum(axis=1)
    return counts


def refuse_few_neighbours(slides: Ints, k: int) -> None:
    """Raise DataError where a sample has fewer than `k` neighbours on other slides; `slides` [N] of all samples."""
    fewest = len(slides) - int(np.bincount(np.unique(slides, return_inverse=True)[1]).max())
    if fewest < k:
        raise DataError(f"robustness index: {k} neighbours asked for, a sample has only {fewest} on other slides")


def _unit(features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    if not np.isfinite(norm).all() or (norm == 0).any():
        raise DataError("robustness index: a feature vector is zero or not finite")
    return (features / norm).astype(np.float32)


def _nearest(unit: npt.NDArray[np.float32], slides: Ints, part: Ints, rows: Ints, k: int) -> Ints:
    """Places in `rows` of the k nearest of each sample of `part`, its own slide left out: int64 [n, k]."""
    similarity = unit[part] @ unit[rows].T
    similarity[slides[part, None] == slides[None, rows]] = -np.inf
    return np.argpartition(-similarity, k - 1, axis=1)[:, :k].astype(np.int64)


@dataclass(frozen=True)
class Design:
    """How many slides of each site and class train, at each level of correlation between site and class.

    `train` int64 [levels, sites, classes]; level 0 is balanced, and the sum over classes and over sites is the
    same at each level. `most`: slides of a site and class that train at most; one more validates (as many
    tiles of it as of one `most`-th of those that train), the rest is tested.
    """

    train: Ints
    most: int


def two_site_design(classes: int, slides: int) -> Design:
    """Two sites; level l moves l slides of the first half of the classes from site 0 to site 1, and of the
    second half the other way, from `slides` each (level 0) to none and twice as many (the last level).
    """
    levels = np.arange(slides + 1)
    sign = np.where(np.arange(classes) < classes // 2, -1, 1)
    first = slides + levels[:, None] * sign  # [levels, classes]
    return Design(np.stack([first, 2 * slides - first], axis=1).astype(np.int64), 2 * slides)


def four_site_design() -> Design:
    """TCGA 4 x 4: slides of site i and class i, of i + j = 3, and of the others, in seven levels."""
    table = ((2, 2, 2), (3, 1, 2), (4, 2, 1), (5, 1, 1), (6, 0, 1), (7, 1, 0), (8, 0, 0))
    site, label = np.indices((4, 4))
    place = np.where(site == label, 0, np.where(site + label == 3, 1, 2))
    return Design(np.array(table, dtype=np.int64)[:, place], 8)


@dataclass(frozen=True)
class Drop:
    """Balanced accuracies float64 [levels, repeats] on slides of the same sites, and of other sites.

    `tested`, `right`: how many samples of each slide and class [U] were tested, [2, repeats, U] (0 the same sites, 1
    other sites), and how many of them were right, [2, repeats, levels, U]; `slide`, `label`: of each, [U].
    """

    inside: Floats
    outside: Floats
    tested: Ints
    right: Ints
    slide: Ints
    label: Ints

    @property
    def inside_drop(self) -> float:
        """Mean over levels above 0 and repeats of accuracy / accuracy at level 0, minus 1: at best 0."""
        return _drop(self.inside)

    @property
    def outside_drop(self) -> float:
        """The same on the other sites."""
        return _drop(self.outside)


def _drop(scores: Floats) -> float:
    return float((scores[1:] / scores[0]).mean() - 1.0)


def performance_drop(
    features: npt.NDArray[np.float32],
    labels: Ints,
    sites: Ints,
    slides: Ints,
    outside: npt.NDArray[np.bool_],
    design: Design,
    repeats: int = 20,
    seed: int = 0,
    grid: Sequence[float] = C_GRID,
) -> Drop:
    """How much a classifier loses when class and site go together in training.

    `features` [N, D]; `labels`, `sites`, `slides` int64 [N] from 0; `outside` bool [N]: samples of other sites, tested
    only. For each repeat the slides are put in a random order, from which all levels of `design` take the first
    ones of each site and class. Logistic regression, C from `grid` by validation. Raises DataError where a
    site and class have too few slides.
    """
    cells = cells_of(labels, sites, slides, outside, design)
    accuracy = np.empty((2, len(design.train), repeats))
    units, unit = np.unique(np.stack([slides, labels]), axis=1, return_inverse=True)
    unit, count = unit.reshape(-1), units.shape[1]
    tested = np.zeros((2, repeats, count), dtype=np.int64)
    right = np.zeros((2, repeats, len(design.train), count), dtype=np.int64)
    for repeat in range(repeats):
        words = Words(seed, "performance drop", repeat)
        place_of = words.permutations(int(slides.max()) + 1)
        order = {cell: sorted(parts, key=lambda rows: place_of[slides[rows[0]]]) for cell, parts in cells.items()}
        tests = (_rest(order, slides, labels, design.most), np.flatnonzero(outside))
        for place, rows in enumerate(tests):
            tested[place, repeat] = np.bincount(unit[rows], minlength=count)
        for level, table in enumerate(design.train):
            train, val = _parts(order, table, design.most)
            model = _fit(features, labels, train, val, grid)
            for place, rows in enumerate(tests):
                said = model.predict(features[rows])
                accuracy[place, level, repeat] = balanced_accuracy_score(labels[rows], said)
                right[place, repeat, level] = np.bincount(unit[rows[said == labels[rows]]], minlength=count)
    return Drop(accuracy[0], accuracy[1], tested, right, units[0], units[1])


def cells_of(
    labels: Ints, sites: Ints, slides: Ints, outside: npt.NDArray[np.bool_], design: Design
) -> dict[tuple[int, int], list[Ints]]:
    """Rows of each slide, by site and class, of the samples that are not outside. Raises DataError where the design
    asks for more slides than there are, or for other sites.
    """
    inside = np.flatnonzero(~outside)
    if not len(inside) or not outside.any():
        raise DataError("performance drop: samples of the training sites and of other sites are needed")
    names = np.unique(sites[inside]), np.unique(labels)
    if (len(names[0]), len(names[1])) != design.train.shape[1:]:
        wanted = " x ".join(map(str, design.train.shape[1:]))
        raise DataError(f"performance drop: {len(names[0])} sites x {len(names[1])} classes, the design has {wanted}")
    cells = {}
    for i, site in enumerate(names[0]):
        for j, label in enumerate(names[1]):
            rows = inside[(sites[inside] == site) & (labels[inside] == label)]
            cells[i, j] = [rows[slides[rows] == slide] for slide in np.unique(slides[rows])]
            if len(cells[i, j]) < design.most + 2:
                needed = f"{design.most + 2} slides of each site and class are needed"
                raise DataError(f"performance drop: {needed}, site {site} has {len(cells[i, j])} of class {label}")
    return cells


def _rest(order: dict[tuple[int, int], list[Ints]], slides: Ints, labels: Ints, most: int) -> Ints:
    """Rows to test: those of slides that neither train nor validate for any class, at any level."""
    used = np.unique(slides[np.concatenate([rows for parts in order.values() for rows in parts[: most + 1]])])
    rest = np.concatenate([rows for parts in order.values() for rows in parts[most + 1 :]])
    rest = rest[~np.isin(slides[rest], used)]
    if lacking := {label for _, label in order} - set(
        np.unique(np.unique(labels, return_inverse=True)[1][rest]).tolist()
    ):
        raise DataError(f"performance drop: no slide is left to test class {min(lacking)}; classes share their slides")
    return rest


def _parts(order: dict[tuple[int, int], list[Ints]], table: Ints, most: int) -> tuple[Ints, Ints]:
    """Training rows, and validation rows in the same proportions of site and class."""
    train, val = [], []
    for (site, label), parts in order.items():
        count = int(table[site, label])
        train += parts[:count]
        val.append(parts[count][: len(parts[count]) * count // most])
    return np.concatenate(train), np.concatenate(val)


def _fit(
    features: npt.NDArray[np.float32], labels: Ints, train: Ints, val: Ints, grid: Sequence[float]
) -> LogisticRegression:
    """The regression with the C that does best on the validation rows, the smallest of equals."""
    models = [LogisticRegression(C=c).fit(features[train], labels[train]) for c in grid]
    scores = [balanced_accuracy_score(labels[val], model.predict(features[val])) for model in models]
    return models[int(np.argmax(scores))]
