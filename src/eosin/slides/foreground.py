"""Where the tissue is: a bool map of a slide at a coarse µm/px, by a rule without a model.

Which rule is a choice by name: `density` (the default), the same without its test of hue for `any-stain`
(foreground_density.py), `clam` and `otsu` (foreground_saturation.py).
A map drawn by a person goes before any of them (annotations.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from eosin.errors import SlideError
from eosin.slides.foreground_density import any_stain_foreground, density_foreground
from eosin.slides.foreground_saturation import clam_foreground, otsu_foreground
from eosin.slides.foreground_tidy import Mask
from eosin.slides.reader import Slide
from eosin.slides.resample import Pixels

__all__ = ["FOREGROUND_MPP", "RULES", "Foreground", "Mask", "Rule", "find_foreground", "rule_of", "tissue_of"]

FOREGROUND_MPP = 8.0


class Rule(NamedTuple):
    """A way to tell tissue from glass. version: raised when the same pixels would give another mask."""

    name: str
    version: int
    find: Callable[[Pixels, float], Mask]


RULES = {
    rule.name: rule
    for rule in (
        Rule("density", 3, density_foreground),
        Rule("any-stain", 3, any_stain_foreground),
        Rule("clam", 1, clam_foreground),
        Rule("otsu", 1, otsu_foreground),
    )
}


class Foreground(NamedTuple):
    """Tissue of one slide.

    mask: bool [h, w]; pixel (r, c) covers µm [c·mpp, (c+1)·mpp) × [r·mpp, (r+1)·mpp) from the slide's
    top-left corner. mpp: side of a mask pixel in µm.
    """

    mask: Mask
    mpp: float

    @property
    def mm2(self) -> float:
        """Tissue area in mm²."""
        return float(self.mask.sum()) * self.mpp**2 / 1e6


def find_foreground(slide: Slide, mpp: float = FOREGROUND_MPP, rule: str = "density") -> Foreground:
    """Tissue of `slide` at `mpp` µm/px (coarser where the slide itself is coarser) by a rule of `RULES`.

    Reads the coarsest level that serves. A slide without tissue gives a mask of False. Raises SlideError
    where the slide cannot be read or no rule has that name.
    """
    mpp = max(mpp, slide.mpp)
    return Foreground(tissue_of(slide.whole(mpp), mpp, rule), mpp)


def tissue_of(pixels: Pixels, mpp: float, rule: str = "density") -> Mask:
    """A rule on an overview: uint8 RGB [h, w, 3] at `mpp` µm/px to bool [h, w]."""
    return rule_of(rule).find(pixels, mpp)


def rule_of(name: str) -> Rule:
    """The rule of that name; SlideError where there is none."""
    if name not in RULES:
        raise SlideError(f"no foreground rule is called {name}; there are {', '.join(RULES)}")
    return RULES[name]
