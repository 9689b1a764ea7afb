"""The model card of trained heads: what they read, learnt from and are worth, and what they may be used for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eosin.models.slide_task import SlideTask

_TEMPLATE = """---
library_name: eosin
tags: [pathology, histology, multiple-instance-learning, eosin]
---

# {kind} on {model}

{runs} heads ({seeds}) that score a whole slide from the features of its tiles, trained by eosin {version}.

| | |
|---|---|
| reads | features [tiles, {width}] of {model} (model hash {model_hash}), {mpp} µm/px |
| predicts | {tasks} |
| head | {kind}, {settings} |
| training | {train} |
| protocol | {protocol}; bags are {bags} |
| labelled bags | {counts} |
| settings hash | {settings_hash} |
| licence of the encoder's start weights | {licence} |

## Use

```
eosin mil predict FOLDER FEATURES -o OUT
eosin heatmap FOLDER SLIDE -o OUT
```

```python
from eosin.evaluation.mil import load_heads
heads = load_heads("FOLDER")
heads.scores(features)  # float32 [N, {width}] -> task -> class -> probability, averaged over the heads
```

## Scores

On patients that did not train the head; 95 % intervals by resampling patients, sd over {over} apart.

{scores}
{flags}
## Intended use

Research only. Not a medical device; not for diagnosis or any decision about a patient. The heads hold for features of
the same encoder, µm/px and tile size; other scanners, stains, organs and sites must be tested first. The heads keep
what they learnt from the licence terms of the slides and of the encoder.
"""


def head_card(info: dict[str, Any], tasks: Sequence[SlideTask], rows: Sequence[dict[str, Any]]) -> str:
    """README.md of heads: `info` as in their config.json, `rows` of results.json."""
    train = info["train"]
    first = rows[0]
    told = [f"{task.name} ({task.kind}{': ' + ', '.join(task.classes) if task.classes else ''})" for task in tasks]
    counts = dict.fromkeys(f"{row['task']}: {_counts(row)}" for row in rows)
    patience = f", patience {train['patience']} after epoch {train['patience_after']}" if train["patience"] else ""
    return _TEMPLATE.format(
        kind=info["kind"],
        model=info["model"] or f"features in {Path(info['features']).name}",
        model_hash=info["model_hash"] or "not stated",
        mpp=info.get("mpp") or "not stated",
        width=info["width"],
        version=info["version"],
        runs=first["runs"] * (1 if info["joint"] else len({row["task"] for row in rows})),
        seeds=f"{first['runs']} runs a task" if not info["joint"] else f"{first['runs']} runs, all tasks on one head",
        tasks="; ".join(told),
        settings=", ".join(f"{key} {value}" for key, value in info["settings"].items()) or "default settings",
        train=f"{train['optimizer']}, lr {train['lr']:g}, weight decay {train['weight_decay']:g}, at most"
        f" {train['epochs']} epochs{patience}, {train['batch']} bags a step",
        protocol=info["protocol"]["name"],
        bags={"slide": "slides", "patient": "patients", "average": "slides, averaged over a patient"}[info["group"]],
        counts="; ".join(counts),
        settings_hash=info["settings_hash"],
        licence=info.get("start_licence") or "not stated",
        over=first["run_sd_over"],
        scores=_table(rows),
        flags=_flags(rows),
    )


def _counts(row: dict[str, Any]) -> str:
    train = ", ".join(f"{count} {name}" for name, count in row["n_train"].items())
    test = ", ".join(f"{count} {name}" for name, count in row["n_per_class"].items())
    return f"{train} to train, {test} tested"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| task | metric | score | 95 % interval | sd | n | patients |", "|---|---|---|---|---|---|---|"]
    lines += [
        f"| {row['task']} | {row['metric']} | {_number(row['mean'])} | {_number(row['ci_low'])} to"
        f" {_number(row['ci_high'])} | {_number(row['run_sd'])} | {row['n']} | {row['n_patients']} |"
        for row in rows
    ]
    return "\n".join(lines)


def _flags(rows: Sequence[dict[str, Any]]) -> str:
    """What makes a score no test, or not comparable: one line each."""
    lines = []
    for row in {row["task"]: row for row in rows}.values():
        if row["task_in_training"]:
            lines.append(f"- {row['task']} was a training task of the encoder: its score is no test.")
        if row["patients_in_training"]:
            lines.append(f"- {row['task']}: {row['patients_in_training']} patients were in the encoder's training.")
        if row["counts_differ"]:
            lines.append(f"- {row['counts_differ']}.")
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def _number(value: float | None) -> str:
    return "not known" if value is None or value != value else f"{value:.3f}"
