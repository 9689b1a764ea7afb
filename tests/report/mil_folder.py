"""Folders as `eosin mil train` leaves them, with predictions whose scores are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

SIX = (
    *("cptac-brca-tp53", "cptac-brca-pik3ca", "cptac-ccrcc-pbrm1"),
    *("cptac-ccrcc-bap1", "cptac-coad-kras", "cptac-coad-tp53"),
)


def write_mil_folder(
    root: Path,
    tasks: dict[str, list[str]],
    head: str = "clam-sb",
    model: str = "kaiko/vits16",
    signal: float = 1.5,
    seeds: int = 4,
    bags: int = 40,
    flags: dict[str, Any] | None = None,
    survival: str | None = None,
    regression: str | None = None,
) -> Path:
    """A folder with `bags` test bags a task (and as many for training); tasks: name -> classes."""
    rng = np.random.default_rng(len(head) + bags)
    rows: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    told = {
        "protocol": "exaone",
        "protocol_hash": "p1",
        "head": head,
        "model": model,
        "model_hash": "abcd",
        **(flags or {}),
    }
    for task, classes in tasks.items():
        for split in ("train", "test"):
            labels = rng.integers(0, len(classes), bags)
            labels[: len(classes)] = np.arange(len(classes))
            logits = signal * np.eye(len(classes))[labels] + rng.normal(0, 1, (bags, len(classes)))
            aurocs, accuracies = [], []
            for seed in range(seeds):
                noisy = logits + rng.normal(0, 0.5, logits.shape)
                share = np.exp(noisy) / np.exp(noisy).sum(axis=1, keepdims=True)
                for n, label in enumerate(labels):
                    row = {
                        "task": task,
                        "slide": f"{split}-{n}",
                        "patient": f"{split}-p{n}",
                        "split": split,
                        "seed": seed,
                    }
                    row |= {"fold": 0, "label": classes[label]}
                    rows.append(row | {f"p_{name}": share[n, k] for k, name in enumerate(classes)})
                one = [roc_auc_score(labels == k, share[:, k]) for k in range(len(classes))]
                aurocs.append(one[1] if len(classes) == 2 else float(np.mean(one)))
                accuracies.append(balanced_accuracy_score(labels, share.argmax(axis=1)))
            if split == "test":
                counts = {name: int((labels == k).sum()) for k, name in enumerate(classes)}
                for metric, scores in (("auroc", aurocs), ("balanced_accuracy", accuracies)):
                    results.append(_row(task, metric, scores, bags, told) | {"n_per_class": counts})
        for seed in range(seeds):
            falling = [0.7 * 0.97**epoch + 0.02 * seed for epoch in range(60)]
            epochs = [{"epoch": n + 1, "train": v, "val": v + 0.004 * n} for n, v in enumerate(falling)]
            curves.append({"task": task, "seed": seed, "fold": 0, "epochs": epochs})
    if survival:
        risk = rng.normal(size=bags)
        time = rng.exponential(np.exp(-risk)) * 30
        for n in range(bags):
            row = {"task": survival, "slide": f"s{n}", "patient": f"s{n}", "split": "test", "seed": 0, "fold": 0}
            rows.append(row | {"label": "", "risk": risk[n], "time": time[n], "event": float(rng.random() < 0.7)})
        results.append(_row(survival, "c_index", [0.7], bags, told))
    if regression:
        truth = rng.normal(size=bags)
        for n in range(bags):
            row = {"task": regression, "slide": f"r{n}", "patient": f"r{n}", "split": "test", "seed": 0, "fold": 0}
            rows.append(row | {"label": truth[n], "value": truth[n] + rng.normal(0, 0.4)})
        results.append(_row(regression, "r2", [0.8], bags, told))
    (root / "heads").mkdir(parents=True)
    (root / "results.json").write_text(json.dumps(results))
    (root / "curves.json").write_text(json.dumps(curves))
    kinds = [
        {"name": task, "kind": "classification", "classes": classes, "cuts": []} for task, classes in tasks.items()
    ]
    (root / "heads" / "config.json").write_text(json.dumps({"kind": head, "tasks": kinds, "train": {"lr": 1e-4}}))
    pd.DataFrame(rows).to_csv(root / "predictions.csv", index=False)
    return root


def _row(task: str, metric: str, scores: list[float], bags: int, told: dict[str, Any]) -> dict[str, Any]:
    mean, spread = float(np.mean(scores)), float(np.std(scores, ddof=1)) if len(scores) > 1 else None
    row = {
        "task": task,
        "metric": metric,
        "split": "test",
        "mean": mean,
        "run_sd": spread,
        "runs": len(scores),
        "n": bags,
    }
    limits = {"ci_low": max(mean - 0.12, 0), "ci_high": min(mean + 0.1, 1)}
    return {**row, **limits, "n_patients": bags, "seconds": 12.5, "version": "0.1", **told}
