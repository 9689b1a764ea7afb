"""Slides: a slide file to pixels at a true µm/px, tissue maps and cohorts. Knows no tiles, no torch."""

from eosin.slides.cohort import Cohort
from eosin.slides.foreground import Foreground, find_foreground
from eosin.slides.reader import Level, Slide, open_slide

__all__ = ["Cohort", "Foreground", "Level", "Slide", "find_foreground", "open_slide"]
