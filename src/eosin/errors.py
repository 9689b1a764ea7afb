"""Errors that a user can act on: one line that says what is wrong, where, and what to do.

The command line prints an `EosinError` as that one line and exits with 2. Anything else is a defect of eosin
and exits with 1 and a traceback.
"""

from __future__ import annotations


class EosinError(Exception):
    """Base of every refusal. `str(error)` is one line."""

    def __str__(self) -> str:
        return " ".join(super().__str__().split())


class SlideError(EosinError):
    """A slide that cannot be opened, has no believable scale, or fails while being read."""


class SlideGone(SlideError):
    """A slide of a cohort that cannot be opened any more: moved, replaced or damaged since it was indexed."""


class StoreDown(EosinError):
    """An object store that does not answer, or not to us. No slide's fault: work stops, and can go on later."""


class RegionError(SlideError):
    """A region that the slide cannot give: finer than it has, or an impossible size."""


class CohortError(EosinError):
    """A cohort file that is missing, malformed, or holds no usable slide."""


class PlanError(EosinError):
    """A tile plan that cannot be met: no slide offers the wanted µm/px, or no position passes the filters."""


class RecipeError(EosinError):
    """A recipe with an unknown key, an impossible value, or a value without a mark."""


class WeightsError(EosinError):
    """Weights that do not fit the model, key by key and shape by shape."""


class ResumeError(EosinError):
    """A run folder that belongs to another recipe or cohort."""


class DataError(EosinError):
    """A labelled data set, feature file or label table that does not have the stated layout."""


class OutputError(EosinError):
    """An output that cannot be written."""


class TrainingStopped(EosinError):
    """A run that stopped itself: non-finite loss or another alarm that is set to stop."""


class Interrupted(TrainingStopped):
    """A run that somebody stopped: Ctrl-C or a signal. The same command goes on."""
