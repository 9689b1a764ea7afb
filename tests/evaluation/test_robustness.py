"""Robustness measures on synthetic features whose answer is known."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from eosin.errors import DataError
from eosin.evaluation.robustness import (
    Neighbours,
    four_site_design,
    performance_drop,
    robustness_index,
    two_site_design,
)

Ints = npt.NDArray[np.int64]


def cohort(sites: int, classes: int, slides: int, tiles: int) -> tuple[Ints, Ints, Ints]:
    """labels, sites, slides of `tiles` tiles a slide, `slides` slides of each site and class."""
    site, label, slide, _ = (index.ravel() for index in np.indices((sites, classes, slides, tiles)))
    return label.astype(np.int64), site.astype(np.int64), ((site * classes + label) * slides + slide).astype(np.int64)


def features_of(
    label: Ints, site: Ints, biology: float, centre: float, noise: float, seed: int = 0
) -> npt.NDArray[np.float32]:
    """One direction a class, one a site, and noise."""
    rng = np.random.default_rng(seed)
    z = noise * rng.standard_normal((len(label), 24))
    z[np.arange(len(label)), label] += biology
    z[np.arange(len(label)), 12 + site] += centre
    return z.astype(np.float32)


def test_index_is_one_for_biology_and_zero_for_the_centre() -> None:
    label, site, slide = cohort(3, 3, 6, 4)
    # 20 neighbours of the 5 other slides of the own class and site are all it has; beyond lies the answer.
    k = 40
    biology = robustness_index(features_of(label, site, 9.0, 1.0, 0.01), label, site, slide, k)
    centre = robustness_index(features_of(label, site, 1.0, 9.0, 0.01), label, site, slide, k)
    assert biology.same_same == centre.same_same == 20 * len(label)
    assert biology == Neighbours(20 * len(label), 20 * len(label), 0, 0)
    assert centre == Neighbours(20 * len(label), 0, 20 * len(label), 0)
    assert (biology.robustness, centre.robustness) == (1.0, 0.0)


def test_index_without_either_is_the_share_of_chance() -> None:
    """Pure noise: neighbours are any tiles of other slides; 2 of 3 sites differ, 3 of 4 classes."""
    label, site, slide = cohort(3, 4, 10, 5)
    found = robustness_index(features_of(label, site, 0.0, 0.0, 1.0), label, site, slide, 50)
    assert sum(found) == 50 * len(label)
    assert found.robustness == pytest.approx((1 / 4 * 2 / 3) / (1 / 4 * 2 / 3 + 3 / 4 * 1 / 3), abs=0.02)


def test_index_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    label, site, slide = (rng.integers(0, n, 120) for n in (3, 2, 15))
    block = rng.integers(0, 2, 120)
    z = features_of(label, site, 1.0, 0.7, 1.0)
    found = robustness_index(z, label, site, slide, 7, block)
    unit = z / np.linalg.norm(z, axis=1, keepdims=True)
    counts = {(c, s): 0 for c in (True, False) for s in (True, False)}
    for i in range(120):
        others = [j for j in range(120) if slide[j] != slide[i] and block[j] == block[i]]
        for j in sorted(others, key=lambda j: -float(unit[i] @ unit[j]))[:7]:
            counts[bool(label[i] == label[j]), bool(site[i] == site[j])] += 1
    assert found == (counts[True, True], counts[True, False], counts[False, True], counts[False, False])


def test_designs_are_those_of_the_paper() -> None:
    camelyon, esca, tcga = two_site_design(2, 7), two_site_design(6, 3), four_site_design()
    assert (len(camelyon.train), len(esca.train), len(tcga.train)) == (8, 4, 7)
    assert (camelyon.most, esca.most, tcga.most) == (14, 6, 8)
    assert camelyon.train[7].tolist() == [[0, 14], [14, 0]]
    assert esca.train[1].tolist() == [[2, 2, 2, 4, 4, 4], [4, 4, 4, 2, 2, 2]]
    assert tcga.train[2][0].tolist() == [4, 1, 1, 2]
    assert tcga.train[6].tolist() == np.diag([8] * 4).tolist()
    for design in (camelyon, esca, tcga):
        assert (design.train[0] == design.train[0, 0, 0]).all()
        assert (design.train.sum(axis=1) == design.train[0].sum(axis=0)).all()
        assert (design.train.sum(axis=2) == design.train[0].sum(axis=1)).all()


def drop_of(biology: float, centre: float) -> tuple[float, float, float]:
    """Inside and outside drop and balanced accuracy at level 0; two training sites, one other."""
    label, site, slide = cohort(3, 2, 9, 6)
    z = features_of(label, site, biology, centre, 1.0)
    found = performance_drop(z, label, site, slide, site == 2, two_site_design(2, 3), repeats=3, grid=(1e-3, 1.0))
    assert found.inside.shape == found.outside.shape == (4, 3)
    return found.inside_drop, found.outside_drop, float(found.inside[0].mean())


def test_drop_is_nothing_without_a_trace_of_the_centre() -> None:
    inside, outside, start = drop_of(biology=12.0, centre=0.0)
    assert start == 1.0
    assert (inside, outside) == (0.0, 0.0)


def test_drop_is_large_where_the_centre_outshines_the_class() -> None:
    """At the last level site and class are one: a classifier that follows the site is wrong half of the time."""
    inside, _, start = drop_of(biology=2.0, centre=12.0)
    assert start > 0.8
    assert inside < -0.1
    assert drop_of(biology=2.0, centre=12.0)[0] == inside


def test_refusals_are_one_line() -> None:
    label, site, slide = cohort(3, 2, 3, 2)
    z = features_of(label, site, 1.0, 1.0, 1.0)
    with pytest.raises(DataError, match="99 neighbours asked for, a sample has only 34"):
        robustness_index(z, label, site, slide, 99)
    with pytest.raises(DataError, match="zero"):
        robustness_index(np.zeros_like(z), label, site, slide, 2)
    with pytest.raises(DataError, match="8 slides of each site and class are needed, site 0 has 3"):
        performance_drop(z, label, site, slide, site == 2, two_site_design(2, 3))
    with pytest.raises(DataError, match="3 sites x 2 classes, the design has 2 x 2"):
        performance_drop(z, label, site, slide, slide == slide.max(), two_site_design(2, 3))


def test_slides_of_several_classes_never_train_and_test() -> None:
    label, site, slide = cohort(3, 2, 9, 2)
    shared = site * 9 + slide % 9
    found = performance_drop(
        features_of(label, site, 9.0, 0.0, 1.0),
        label,
        site,
        shared,
        site == 2,
        two_site_design(2, 3),
        repeats=1,
        grid=(1.0,),
    )
    assert found.inside_drop == 0.0
