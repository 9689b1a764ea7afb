"""Probes: simple classifiers on frozen features, by which encoders are compared."""

from eosin.evaluation.probes.knn import knn, knn_accuracy, knn_scores
from eosin.evaluation.probes.linear import linear
from eosin.evaluation.probes.logreg import logreg
from eosin.evaluation.probes.probe import Examples, Prediction, Probe
from eosin.evaluation.probes.simpleshot import simpleshot

PROBES: dict[str, Probe] = {"knn": knn, "linear": linear, "logreg": logreg, "simpleshot": simpleshot}

__all__ = [
    "PROBES",
    "Examples",
    "Prediction",
    "Probe",
    "knn",
    "knn_accuracy",
    "knn_scores",
    "linear",
    "logreg",
    "simpleshot",
]
