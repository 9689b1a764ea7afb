"""Recipes: shipped ones are complete and marked, typos are one line, what is written reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin.errors import RecipeError
from eosin.marks import MARKS, leaves
from eosin.models import ViT
from eosin.training import load_recipe, shipped_recipes
from eosin.training.recipe import recipe_text, recipe_values


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_value_has_a_mark(name: str, tmp_path: Path) -> None:
    recipe, marks = load_recipe(name)
    keys = {key for key in leaves(recipe_values(recipe)) if key not in ("name", "description")}
    assert set(marks) == keys
    assert set(marks.values()) <= set(MARKS) - {"U"}
    assert recipe.name == name
    (tmp_path / "again.yaml").write_text(recipe_text(recipe, marks))
    assert load_recipe(str(tmp_path / "again.yaml")) == (recipe, marks)


def test_published_numbers() -> None:
    midnight, marks = load_recipe("midnight-12k")
    assert (midnight.run.batch, midnight.run.steps, marks["run.batch"], marks["run.steps"]) == (
        768,
        500_100,
        "S",
        "I",
    )
    assert midnight.optim.peak_lr(768) == pytest.approx(3.03e-4, rel=1e-3)
    assert (midnight.tiles.hsv_share, midnight.tiles.min_foreground) == (0.6, 0.4)
    assert midnight.tiles.mpp == [0.25, 0.5, 1.0, 2.0]
    small, marks = load_recipe("vits14-1h")
    assert marks["tiles.mpp.low"] == "O"
    assert marks["views.global_scale"] == "C"
    assert small.optim.peak_lr(128) == pytest.approx(1e-4)


@pytest.mark.parametrize(("name", "millions"), [("midnight-12k", 1136), ("vits14-1h", 22), ("quickstart", 5.5)])
def test_encoder_sizes(name: str, millions: float) -> None:
    import torch

    with torch.device("meta"):
        encoder = ViT(load_recipe(name)[0].encoder)
    assert sum(p.numel() for p in encoder.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("run.bacth=3", "unknown key run.bacth; known keys there: batch, steps"),
        ("rum.batch=3", "unknown key rum; known keys there: name"),
        ("run.batch=many", "run.batch: "),
        ("run.batch=30", "run.batch 30 is not a multiple of run.group 16"),
        ("views.global_px=97", "views.global_px 97 is not a multiple of encoder.patch 16"),
        ("tiles.mpp={low: 2, high: 1}", "tiles.mpp"),
        ("tiles.mpp=[]", "mpp needs at least one scale"),
        ("run.batch", "write it as key=value"),
        ("run.batch.size=3", "batch is a value"),
        ("optim.warmup_steps=ten", "optim.warmup_steps"),
        ("views.global_count=3", "views.global_count must be 2"),
    ],
)
def test_a_typo_is_one_line(change: str, says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("quickstart", [change])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_user_recipes_and_changes_are_marked_as_such(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("base: quickstart\nrun:\n  batch: 16\ntiles:\n  mpp: {low: 0.5, high: 1.0, law: log}\n")
    recipe, marks = load_recipe(str(path), ["optim.base_lr=1e-3"])
    assert (recipe.name, recipe.run.batch, recipe.optim.base_lr) == ("mine", 16, 1e-3)
    assert recipe.tiles.mpp.law == "log"
    assert {marks["run.batch"], marks["optim.base_lr"], marks["tiles.mpp.low"]} == {"U"}
    assert marks["views.global_scale"] == "C"


def test_unknown_names_and_circles(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no recipe called midnite; there are exaone-path-2, kaiko-vitb16"):
        load_recipe("midnite")
    (tmp_path / "a.yaml").write_text(f"base: {tmp_path}/b.yaml\n")
    (tmp_path / "b.yaml").write_text(f"base: {tmp_path}/a.yaml\n")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(str(tmp_path / "a.yaml"))


def test_the_hash_is_about_learning() -> None:
    base = load_recipe("quickstart")[0].hash
    assert load_recipe("quickstart", ["run.log_every=7", "run.keep_last=9", "run.workers=0"])[0].hash == base
    assert load_recipe("quickstart", ["run.seed=1"])[0].hash != base
    assert load_recipe("quickstart", ["objective.kappa=6"])[0].hash != base
