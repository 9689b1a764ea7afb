"""Study files: bad ones are one line, grids, what wins over what, the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eosin.errors import RecipeError
from eosin.training import load_recipe
from eosin.training.study_file import Arm, load_study, shipped_studies
from eosin.training.study_plan import Words, plan_study

from .study_files import write_study


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"sedes": [0]}, "unknown key sedes; known keys: name, description, base, set"),
        ({"seeds": None}, "seeds is missing"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "one is given twice"),
        ({"arms": None}, "give either `arms` or `grid`"),
        ({"grid": {"run.batch": [8]}}, "give either `arms` or `grid`"),
        ({"arms": None, "grid": {"run.batch": []}}, "grid.run.batch"),
        ({"arms": {True: {}}}, "YAML reads the arm name True as a bool; put it in quotes"),
        ({"arms": {"a": 3}}, "arms.a"),
        ({"arms": {"a b": {}, "a-b": {}}}, "its folder would be 'a-b'"),
        ({"compare": "koleo"}, "no arm 'koleo'; there are kde, no term"),
        ({"arms": {"a": {"run.seed": 3}}, "compare": None}, "use `seeds` and `budget_steps`"),
        ({"pooling": "max"}, "pooling"),
    ],
)
def test_bad_files_are_one_line(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    file = write_study(tmp_path, **changes)
    with pytest.raises(RecipeError) as caught:
        load_study(file)
    assert str(caught.value).startswith(f"study {file}: ")
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_settings_name_the_arm(tmp_path: Path, tiles_folder: Path) -> None:
    for arms, line in (
        ({"typo": {"objective.unifromity": "kde"}}, "arm typo: recipe quickstart: unknown key objective.unifromity"),
        ({"what": {"objective.uniformity": "koala"}}, "arm what: recipe quickstart: objective.uniformity"),
    ):
        with pytest.raises(RecipeError, match=line):
            plan_study(write_study(tmp_path, arms=arms, compare=None), Words(tiles=[str(tiles_folder)], mpp=0.5))
    with pytest.raises(RecipeError, match=r"no study called nothing; there are .*uniformity"):
        load_study("nothing")
    with pytest.raises(RecipeError, match=r"cannot read study .*none\.yaml"):
        load_study(str(tmp_path / "none.yaml"))
    (tmp_path / "twice.yaml").write_text("base: a\nbase: b\n")
    with pytest.raises(RecipeError, match="line 2: key 'base' is given twice"):
        load_study(str(tmp_path / "twice.yaml"))


def test_a_grid_is_every_combination_and_values_survive(tmp_path: Path) -> None:
    grid = {"optim.base_lr": [1e-5, 0.5], "tiles.mpp": [[0.5, 1.0], {"low": 0.25, "high": 2.0, "law": "log"}]}
    study = load_study(write_study(tmp_path, arms=None, grid=grid, compare=None, set={"tiles.mpp_weights": None}))
    arms = study.all_arms()
    assert [arm.name for arm in arms][:2] == ["base_lr=1.0e-05, mpp=[0.5, 1.0]", arms[1].name]
    assert len({arm.folder for arm in arms}) == len(arms) == 4
    recipe = load_recipe("quickstart", study.settings(arms[1], 7, ["run.batch=16"]))[0]
    assert (recipe.optim.base_lr, recipe.tiles.mpp.low, recipe.tiles.mpp.law) == (1e-5, 0.25, "log")  # type: ignore[union-attr]
    assert (recipe.run.seed, recipe.run.steps, recipe.run.batch, recipe.run.minutes) == (7, 6, 16, None)
    assert study.reference == arms[0].name


def test_the_command_line_stands_above_the_file_and_below_the_arms(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path, set={"run.batch": 8}))
    settings = study.settings(Arm("a", {"run.group": 2}), 0, ["run.batch=4", "run.group=4", "run.steps=3"])
    recipe = load_recipe("quickstart", settings)[0]
    assert (recipe.run.batch, recipe.run.group, recipe.run.steps) == (4, 2, 3)


@pytest.mark.parametrize("name", list(shipped_studies()))
def test_shipped_studies_are_recipes_that_hold(name: str) -> None:
    study = load_study(name)
    assert study.name == name
    assert study.description
    recipes = [load_recipe(study.base, study.settings(arm, study.seeds[0]))[0] for arm in study.all_arms()]
    assert len({recipe.hash for recipe in recipes}) == len(recipes) >= 2


def test_studies_of_the_published_experiments_are_there() -> None:
    wanted = "start-weights slide-share distinct-tiles magnification dino-dinov2 uniformity hed hsv odcorr-accuracy"
    assert set(shipped_studies()) >= set(wanted.split())
