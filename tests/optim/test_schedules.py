"""Schedules at their first, last and in-between rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from eosin.optim import SchedulesConfig, make_schedules
from eosin.optim.schedules import cosine, linear_then_flat, step_count


def test_cosine_with_warm_up_row_by_row() -> None:
    values = cosine(2.0, 0.5, steps=10, warmup_steps=4)
    for step in range(4):
        assert values[step] == pytest.approx(2.0 * step / 3)
    for step in range(4, 10):
        assert values[step] == pytest.approx(0.5 + 0.75 * (1 + math.cos(math.pi * (step - 4) / 6)))


def test_schedules_of_a_recipe() -> None:
    config = SchedulesConfig(
        base_lr=4e-3,
        lr_rule="sqrt-1024",
        warmup_steps=100,
        weight_decay=(0.04, 0.2),
        momentum=(0.994, 1.0),
        teacher_temperature=(0.04, 0.07),
        teacher_temperature_steps=300,
        freeze_last_layer_steps=10,
        freeze_encoder_steps="5%",
        uniformity_ramp=(0.1, 0.5),
    )
    schedules = make_schedules(config, steps=1000, batch=256)
    assert schedules.lr.max() == pytest.approx(2e-3)
    assert int(schedules.lr.argmax()) in (99, 100)
    assert schedules.lr[-1] == pytest.approx(1e-6, abs=1e-8)
    assert not schedules.last_layer_lr[:10].any()
    assert np.array_equal(schedules.last_layer_lr[10:], schedules.lr[10:])
    assert list(np.flatnonzero(schedules.last_layer_frozen)) == list(range(10))
    assert not schedules.encoder_lr[:50].any()
    assert np.array_equal(schedules.encoder_lr[50:], schedules.lr[50:])
    assert schedules.weight_decay[0] == pytest.approx(0.04)
    assert schedules.momentum[0] == pytest.approx(0.994)
    assert 0.9999 < schedules.momentum[-1] < 1.0
    assert schedules.teacher_temperature[299] == pytest.approx(0.07)
    assert schedules.teacher_temperature[0] == pytest.approx(0.04)
    assert schedules.uniformity_ramp[100] == pytest.approx(0.0)
    assert schedules.uniformity_ramp[300] == pytest.approx(0.5)
    assert schedules.at(5000) == schedules.at(999)


@pytest.mark.parametrize(("rule", "factor"), [("none", 1.0), ("sqrt-1024", 0.5), ("linear-256", 1.0)])
def test_learning_rate_rules(rule: str, factor: float) -> None:
    assert SchedulesConfig(base_lr=1.0, lr_rule=rule).peak_lr(256) == pytest.approx(factor)


def test_steps_as_a_share() -> None:
    assert step_count("10%", 300) == 30
    assert step_count(7, 300) == 7
    with pytest.raises(ValueError, match="warmup_steps"):
        SchedulesConfig(base_lr=1.0, warmup_steps="ten")
    assert list(linear_then_flat(0, 1, 5, 3)) == pytest.approx([0, 0.5, 1])
