"""Schedules as arrays computed once: step t reads row t. Cosines as in DINO (Caron et al. 2021) and DINOv2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

FloatArray = npt.NDArray[np.float64]
Steps = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^(100|\d{1,2}(\.\d+)?)%$")]
"""A number of steps, or a share of the run such as "10%"."""


class SchedulesConfig(BaseModel):
    """Settings of everything that changes with the step. Steps may be given as a share of the run ("10%")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_lr: float = Field(gt=0, description="learning rate before the batch rule")
    lr_rule: Literal["none", "sqrt-1024", "linear-256"] = "none"
    min_lr: float = Field(1e-6, ge=0)
    warmup_steps: Steps = "10%"
    weight_decay: tuple[float, float] = (0.04, 0.04)
    momentum: tuple[float, float] = (0.994, 1.0)
    teacher_temperature: tuple[float, float] = (0.04, 0.07)
    teacher_temperature_steps: Steps = "30%"
    freeze_last_layer_steps: Steps = "1%"
    freeze_encoder_steps: Steps = Field(0, description="heads-first warm-up: only the heads learn so long")
    uniformity_ramp: tuple[float, float] | None = None

    def peak_lr(self, batch: int) -> float:
        """The learning rate after warm-up for a global batch of `batch` tiles."""
        if self.lr_rule == "sqrt-1024":
            return self.base_lr * math.sqrt(batch / 1024)
        if self.lr_rule == "linear-256":
            return self.base_lr * batch / 256
        return self.base_lr


@dataclass(frozen=True)
class Schedules:
    """One array of length `steps` for each scheduled value."""

    lr: FloatArray
    encoder_lr: FloatArray
    last_layer_lr: FloatArray
    last_layer_frozen: FloatArray
    weight_decay: FloatArray
    momentum: FloatArray
    teacher_temperature: FloatArray
    uniformity_ramp: FloatArray

    @property
    def steps(self) -> int:
        return len(self.lr)

    def at(self, step: int) -> dict[str, float]:
        """Values of one step; past the end the last row holds."""
        row = min(step, self.steps - 1)
        return {name: float(values[row]) for name, values in vars(self).items()}


def cosine(start: float, end: float, steps: int, warmup_steps: int = 0, warmup_start: float = 0.0) -> FloatArray:
    """Linear warm-up from `warmup_start` to `start`, then half a cosine towards `end`; float64 [steps].

    As in the reference code row t of the cosine part of length n is at t / n, so `end` itself is never reached.
    """
    warmup_steps = min(warmup_steps, steps)
    warm = np.linspace(warmup_start, start, warmup_steps)
    rest = np.arange(steps - warmup_steps)
    curve = end + 0.5 * (start - end) * (1 + np.cos(np.pi * rest / max(len(rest), 1)))
    return np.concatenate([warm, curve])


def linear_then_flat(start: float, end: float, ramp_steps: int, steps: int) -> FloatArray:
    """Linear from `start` to `end` over `ramp_steps`, then `end`; float64 [steps]."""
    ramp_steps = min(ramp_steps, steps)
    return np.concatenate([np.linspace(start, end, ramp_steps), np.full(steps - ramp_steps, end)])


def step_count(value: Steps, steps: int) -> int:
    """A number of steps, given as such or as a share of `steps` ("10%")."""
    return value if isinstance(value, int) else round(float(value.removesuffix("%")) / 100 * steps)


def make_schedules(config: SchedulesConfig, steps: int, batch: int) -> Schedules:
    """All schedules of a run of `steps` optimiser steps at a global batch of `batch` tiles."""
    lr = cosine(config.peak_lr(batch), config.min_lr, steps, step_count(config.warmup_steps, steps))
    numbers = np.arange(steps)
    encoder_frozen = numbers < step_count(config.freeze_encoder_steps, steps)
    last_frozen = numbers < step_count(config.freeze_last_layer_steps, steps)
    ramp = np.ones(steps)
    if config.uniformity_ramp is not None:
        begin, end = config.uniformity_ramp
        share = np.arange(steps) / max(steps, 1)
        ramp = np.clip((share - begin) / max(end - begin, 1e-12), 0.0, 1.0)
    return Schedules(
        lr=lr,
        encoder_lr=lr * ~encoder_frozen,
        last_layer_lr=lr * ~last_frozen,
        last_layer_frozen=last_frozen.astype(np.float64),
        weight_decay=cosine(*config.weight_decay, steps),
        momentum=cosine(*config.momentum, steps),
        teacher_temperature=linear_then_flat(
            *config.teacher_temperature, step_count(config.teacher_temperature_steps, steps), steps
        ),
        uniformity_ramp=ramp,
    )
