"""Views: a uint8 batch of tiles becomes augmented crops, batched, on the device. See multicrop.py."""

from eosin.views.config import ViewsConfig
from eosin.views.multicrop import denormalise, render
from eosin.views.plan import CropPlan, ViewPlan, draw_views

__all__ = ["CropPlan", "ViewPlan", "ViewsConfig", "denormalise", "draw_views", "render"]
