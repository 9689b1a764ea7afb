"""eva's metrics: the literals of its own tests, and scikit-learn where no class is missing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from eosin.errors import DataError
from eosin.evaluation.eva_metrics import binary_metrics, multiclass_metrics


def test_literals_of_evas_own_tests() -> None:
    scores = np.array([0.70, 0.95, 0.19, 0.10, 0.59])
    one = binary_metrics(scores, np.array([1, 1, 0, 0, 0]))
    assert one["BinaryBalancedAccuracy"] == pytest.approx(0.8333333730697632)
    two = binary_metrics(np.tile(scores, 2), np.tile([0, 1, 1, 0, 1], 2))
    assert two["BinaryBalancedAccuracy"] == pytest.approx(0.5833333730697632)
    found = binary_metrics(np.array([0.70, 0.05, 0.99, 0.10, 0.3]), np.array([0, 1, 1, 0, 1]))
    assert found == pytest.approx(
        {
            "BinaryAUROC": 0.5,
            "BinaryAccuracy": 0.4,
            "BinaryBalancedAccuracy": 0.4166,
            "BinaryF1Score": 0.4,
            "BinaryPrecision": 0.5,
            "BinaryRecall": 0.3333,
        },
        abs=1e-4,
    )
    rows = np.full((4, 5), 0.05)
    rows[np.arange(4), np.arange(4)] = 0.70
    found = multiclass_metrics(rows, np.array([0, 1, 3, 2]))
    assert found.pop("MulticlassAUROC") == pytest.approx(0.5333, abs=1e-4)
    assert set(found.values()) == {0.5}


def test_equal_to_scikit_learn_where_every_class_occurs() -> None:
    drawn = np.random.default_rng(0)
    labels = drawn.integers(0, 4, 300)
    scores = drawn.random((300, 4)) + np.eye(4)[labels] * 0.4
    said = scores.argmax(axis=1)
    found = multiclass_metrics(scores, labels)
    areas = [metrics.roc_auc_score(labels == number, scores[:, number]) for number in range(4)]
    expected = {
        "MulticlassAccuracy": metrics.balanced_accuracy_score(labels, said),
        "MulticlassF1Score": metrics.f1_score(labels, said, average="macro"),
        "MulticlassPrecision": metrics.precision_score(labels, said, average="macro"),
        "MulticlassRecall": metrics.recall_score(labels, said, average="macro"),
        "MulticlassAUROC": np.mean(areas),
    }
    assert found == pytest.approx(expected, abs=1e-12)
    two, score = labels // 2, np.clip(scores[:, 2] / 1.5, 0, 1)
    above = (score > 0.5).astype(int)
    assert binary_metrics(score, two) == pytest.approx(
        {
            "BinaryAUROC": metrics.roc_auc_score(two, score),
            "BinaryAccuracy": metrics.accuracy_score(two, above),
            "BinaryBalancedAccuracy": metrics.balanced_accuracy_score(two, above),
            "BinaryF1Score": metrics.f1_score(two, above),
            "BinaryPrecision": metrics.precision_score(two, above),
            "BinaryRecall": metrics.recall_score(two, above),
        },
        abs=1e-12,
    )


def test_missing_classes_and_bad_input() -> None:
    scores = np.eye(3)[[0, 0, 1, 2]]
    assert multiclass_metrics(scores, np.array([0, 0, 1, 1]))["MulticlassAccuracy"] == pytest.approx(0.5)
    assert multiclass_metrics(np.eye(3)[[0, 0, 1, 1]], np.array([0, 0, 1, 1]))["MulticlassAccuracy"] == 1.0
    only = binary_metrics(np.array([0.9, 0.2]), np.array([1, 1]))
    assert (only["BinaryAUROC"], only["BinaryBalancedAccuracy"], only["BinaryPrecision"]) == (0.0, 0.25, 1.0)
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        binary_metrics(np.array([1.2, 0.2]), np.array([1, 0]))
    with pytest.raises(DataError, match="labels in"):
        multiclass_metrics(scores, np.array([0, 1, 2, 3]))
    with pytest.raises(DataError, match="row of scores"):
        multiclass_metrics(scores, np.array([0, 1]))
