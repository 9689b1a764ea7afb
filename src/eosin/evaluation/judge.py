"""One model on one task by one protocol: judged as the task's kind says, and what goes into results.json."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from eosin.evaluation.kinds import kind_of
from eosin.evaluation.outcome import Measure, Outcome, merged
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.statistics import interval_of
from eosin.evaluation.tasks import Task


def judge(task: Task, inputs: Any, protocol: Protocol, device: torch.device | None = None) -> Outcome:
    """Judge `inputs` (features float32 [N, D] of all N samples, or what the task's kind reads) of `task`.

    Deterministic on a CPU.
    """
    return kind_of(task).judge(task, inputs, protocol.of(task.kind), device or torch.device("cpu"))


def row_of(task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
    """The part of the main row of results.json that task, protocol and outcome decide."""
    return rows_of(task, protocol, outcome)[0]


def rows_of(task: Task, protocol: Protocol, outcome: Outcome) -> list[dict[str, Any]]:
    """The part of rows of results.json that task, protocol and outcome decide, a row a measure."""
    protocol = protocol.of(task.kind)
    said = kind_of(task).describe(task, protocol, outcome)
    return [_row(task, protocol, outcome, measure, said) for measure in outcome.measures]


def _row(task: Task, protocol: Protocol, outcome: Outcome, measure: Measure, said: dict[str, Any]) -> dict[str, Any]:
    value, low, high = interval_of(measure, protocol.draws, protocol.seed)
    runs = len(measure.run_scores)
    patients = None if task.patient is None else len(np.unique(task.patient[outcome.rows]))
    return {
        "task": task.name,
        "kind": task.kind,
        "split": outcome.split,
        "metric": measure.metric,
        "mean": value,
        "run_sd": float(measure.run_scores.std(ddof=1)) if runs > 1 else None,
        "ci_low": low,
        "ci_high": high,
        "n": len(outcome.rows) if measure.count is None else measure.count,
        "n_patients": patients,
        "n_groups": len(measure) if measure.groups is None else len(np.unique(measure.groups)),
        "runs": runs,
        "run_scores": measure.run_scores.tolist(),
        "chance": None,
        "resampled": task.group_name,
        "shared_groups": task.shared_groups(),
        "label_hash": task.label_hash(),
        "protocol": protocol.id,
        "protocol_hash": protocol.hash,
        "settings": protocol.settings_for(task.name),
        **said,
        "choices": merged(outcome.choices),
        "seconds": outcome.seconds,
    }
