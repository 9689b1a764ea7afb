"""Slide-level heads on bags of tile features: CLAM, ABMIL, a transformer, pooling and linear."""

from eosin.models.mil.build import HEADS, build_head
from eosin.models.mil.head import HeadOutput, MilHead, Targets
from eosin.models.mil.stacked import StackedHeads

__all__ = ["HEADS", "HeadOutput", "MilHead", "StackedHeads", "Targets", "build_head"]
