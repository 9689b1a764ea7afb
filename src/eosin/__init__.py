"""eosin: train, evaluate and use pathology foundation models on your own whole-slide images."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that holds it, and its name there. Loaded on first use, so that `eosin --help` needs no torch.
_PUBLIC = {
    "open_slide": "eosin.slides",
    "Cohort": "eosin.slides",
    "load_model": "eosin.features",
    "train": "eosin.training",
    "embed": "eosin.features.embed:embed_slides",
    "train_mil": "eosin.evaluation.mil",
    "predict_mil": "eosin.evaluation.mil",
    "load_heads": "eosin.evaluation.mil",
    "heatmap": "eosin.report.heatmap",
    "evaluate": "eosin.evaluation",
    "leaderboard": "eosin.report.leaderboard:write_leaderboard",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'eosin' has no attribute {name!r}")
    module, _, there = _PUBLIC[name].partition(":")
    return getattr(importlib.import_module(module), there or name)
