"""A run that learns: recipe, step, loop, checkpoints, what is watched."""

from eosin.training.export import export_run
from eosin.training.loop import run_training
from eosin.training.prepare import open_run
from eosin.training.recipe import Recipe, load_recipe, shipped_recipes
from eosin.training.study import run_study
from eosin.training.train import train

__all__ = ["Recipe", "export_run", "load_recipe", "open_run", "run_study", "run_training", "shipped_recipes", "train"]
