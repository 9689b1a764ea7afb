"""Slide-level heads on bags of tile features: labels, splits, training, scores. `eosin mil` is its command line."""

from eosin.evaluation.mil.predict import predict_mil
from eosin.evaluation.mil.run import train_mil
from eosin.evaluation.mil.saved import TrainedHeads, load_heads

__all__ = ["TrainedHeads", "load_heads", "predict_mil", "train_mil"]
