"""What the student is compared with: self-distillation, masked patches, targets, uniformity."""

from eosin.objectives import dino, ibot, targets, uniformity
from eosin.objectives.config import ObjectiveConfig

__all__ = ["ObjectiveConfig", "dino", "ibot", "targets", "uniformity"]
