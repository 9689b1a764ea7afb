"""Learning-rate schedules of probes as factors of the learning rate, a step each.

A schedule that is stepped once an epoch stays where it is within one: a cosine that should end after 12,500 steps
then hardly moves. eva does that (its schedulers are Lightning's, which step by epoch), so it is a choice here.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError

Schedule = Literal["constant", "third-first", "cosine", "polynomial"]
Per = Literal["step", "epoch"]

# torch.optim.lr_scheduler.ConstantLR's defaults: a third of the learning rate for the first 5 of its steps.
THIRD, FIRST = 1.0 / 3.0, 5
POWER = 0.9


def lr_factors(schedule: Schedule, per: Per, steps: int, steps_per_epoch: int) -> npt.NDArray[np.float64]:
    """Factor of the learning rate at each of `steps` optimiser steps, float64 [steps] in [0, 1].

    constant: 1. third-first: 1/3 for the first 5 units, then 1. cosine: (1 + cos(pi t / steps)) / 2 at unit t
    (Loshchilov & Hutter 2017). polynomial: (1 - t / steps) ** .9 (Liu et al., ParseNet, 2015). A unit is a step, or an
    epoch of `steps_per_epoch` steps. Raises DataError for unknown words.
    """
    if per not in ("step", "epoch"):
        raise DataError(f"a schedule is stepped per step or per epoch, not per {per!r}")
    unit = np.arange(steps) // (steps_per_epoch if per == "epoch" else 1)
    if schedule == "constant":
        return np.ones(steps)
    if schedule == "third-first":
        return np.where(unit < FIRST, THIRD, 1.0)
    if schedule == "cosine":
        return 0.5 * (1.0 + np.cos(np.pi * unit / steps))
    if schedule == "polynomial":
        return (1.0 - unit / steps) ** POWER
    raise DataError(f"unknown learning-rate schedule {schedule!r}: constant, third-first, cosine, polynomial")
