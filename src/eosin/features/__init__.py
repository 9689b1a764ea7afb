"""Encoders over tiles: load, embed, export, keep; and what embeddings tell without labels."""

from eosin.features.encoder import Encoder
from eosin.features.export import export_model
from eosin.features.extract import embed_images, kept_embeddings
from eosin.features.label_free import alignment, odcorr, rankme, uniformity
from eosin.features.load import load_model
from eosin.features.store import FeatureStore, feature_key

__all__ = [
    "Encoder",
    "FeatureStore",
    "alignment",
    "embed_images",
    "export_model",
    "feature_key",
    "kept_embeddings",
    "load_model",
    "odcorr",
    "rankme",
    "uniformity",
]
