"""The metrics that eva 0.4.5 records for classification, under its names, by its conventions (torchmetrics').

They differ from scikit-learn's only where a class has no samples: macro averages are over the classes that occur in
the labels or among the predictions, and an area under the ROC curve that is not defined counts as 0.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from eosin.errors import DataError

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


def binary_metrics(scores: Floats, labels: Labels, threshold: float = 0.5) -> dict[str, float]:
    """eva's binary metrics of `scores` [N], probabilities of class 1, for labels [N] in {0, 1}.

    Class 1 is predicted above `threshold`. Raises DataError for other shapes, labels or ranges: eva guesses whether it
    was given probabilities or logits, this does not.
    """
    if scores.shape != labels.shape or scores.ndim != 1 or not len(scores):
        raise DataError(f"binary metrics need one score a label, got {scores.shape} and {labels.shape}")
    if not np.isin(labels, (0, 1)).all() or not ((scores >= 0) & (scores <= 1)).all():
        raise DataError("binary metrics need labels 0 and 1 and probabilities in [0, 1]")
    said = scores > threshold
    right, wrong = int((said & (labels == 1)).sum()), int((said & (labels == 0)).sum())
    missed, spared = int((~said & (labels == 1)).sum()), int((~said & (labels == 0)).sum())
    return {
        "BinaryAUROC": _area(labels == 1, scores),
        "BinaryAccuracy": (right + spared) / len(labels),
        "BinaryBalancedAccuracy": 0.5 * (_share(right, right + missed) + _share(spared, spared + wrong)),
        "BinaryF1Score": _share(2 * right, 2 * right + wrong + missed),
        "BinaryPrecision": _share(right, right + wrong),
        "BinaryRecall": _share(right, right + missed),
    }


def multiclass_metrics(scores: Floats, labels: Labels) -> dict[str, float]:
    """eva's macro metrics of `scores` [N, C], larger = more likely, for labels [N] in 0..C-1.

    Of equal scores the first class is predicted. MulticlassAccuracy is balanced accuracy. Raises DataError for other
    shapes or labels.
    """
    if scores.ndim != 2 or len(scores) != len(labels) or not len(scores):
        raise DataError(f"multiclass metrics need a row of scores a label, got {scores.shape} and {labels.shape}")
    classes = scores.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(f"multiclass metrics need labels in 0..{classes - 1}")
    confusion = metrics.confusion_matrix(labels, scores.argmax(axis=1), labels=list(range(classes)))
    right, said, there = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    seen = (said + there) > 0
    recall = _shares(right, there)[seen].mean()
    return {
        "MulticlassAccuracy": float(recall),
        "MulticlassF1Score": float(_shares(2 * right, said + there)[seen].mean()),
        "MulticlassPrecision": float(_shares(right, said)[seen].mean()),
        "MulticlassRecall": float(recall),
        "MulticlassAUROC": float(np.mean([_area(labels == number, scores[:, number]) for number in range(classes)])),
    }


def _area(positive: npt.NDArray[np.bool_], scores: Floats) -> float:
    return float(metrics.roc_auc_score(positive, scores)) if 0 < positive.sum() < len(positive) else 0.0


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _shares(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    return np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
