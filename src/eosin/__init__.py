"""eosin: train, evaluate and use pathology foundation models on your own whole-slide images."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that holds it. Loaded on first use, so that `eosin --help` does not import torch.
_PUBLIC = {
    "open_slide": "eosin.slides",
    "Cohort": "eosin.slides",
    "load_model": "eosin.features",
    "train": "eosin.training",
    "evaluate": "eosin.evaluation",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'eosin' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
