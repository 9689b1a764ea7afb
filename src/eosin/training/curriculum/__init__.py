"""EXAONE Path 2.0's curriculum (arXiv 2507.06639): tiles, then regions, then slide labels through all three stages."""

from __future__ import annotations

from collections.abc import Sequence

from eosin.errors import RecipeError
from eosin.slides import Cohort
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.curriculum.run import Curriculum
from eosin.training.curriculum.targets import parted
from eosin.training.recipe import Recipe

__all__ = ["Curriculum", "CurriculumRecipe", "curriculum_of", "learned_parts"]


def learned_parts(recipe: Recipe, cohorts: Sequence[Cohort]) -> list[Cohort]:
    """The slides of each cohort that a curriculum learns from: those of all patients who are not held out."""
    assert isinstance(recipe, CurriculumRecipe)
    return [part for part, _ in parted(cohorts, recipe.labels.held_out, recipe.run.seed)]


def curriculum_of(recipe: Recipe, cohorts: Sequence[Cohort]) -> Curriculum:
    """The method of a run of `recipe` on these cohorts. Raises RecipeError, DataError, CohortError, one line."""
    assert isinstance(recipe, CurriculumRecipe)
    if not cohorts:
        raise RecipeError("a curriculum learns from whole slides: give them with --cohort FILE (from `eosin index`)")
    parts = parted(cohorts, recipe.labels.held_out, recipe.run.seed)
    return Curriculum(recipe, [part for part, _ in parts], [held for _, held in parts if held is not None])
