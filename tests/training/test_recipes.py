"""The shipped recipes against a table of values and marks that was transcribed by hand from the published sources."""

from __future__ import annotations

from typing import Any

import pytest

from eosin.marks import MARKS, leaves
from eosin.models import config_of_timm
from eosin.training import Recipe, load_recipe, shipped_recipes
from eosin.training.parallel import check_split
from eosin.training.recipe import recipe_values

PYRAMIDS = ("exaone-path-2", "pyramid-quickstart")
DINO = ("kaiko-vits16", "kaiko-vitb16", "kaiko-vits8", "kaiko-vitb8")
MIDNIGHT = ("midnight-12k", "midnight-92k")
KDE = (*MIDNIGHT, "midnight-392", "midnight-8gpu", "midnight-1gpu", "vits14-1h", "quickstart")
DINOV2 = ("kaiko-vitl14", *KDE)
PRESETS = ("midnight-8gpu", "midnight-1gpu", "vits14-1h")
FOUR_SCALES = [0.25, 0.5, 1.0, 2.0]
RANGE = {"low": 0.25, "high": 2.2, "law": "uniform"}
SMALL_HEADS = ("midnight-1gpu", "vits14-1h")

Row = tuple[tuple[str, ...], str, Any, str]

TILES: list[Row] = [
    ((*DINO, "kaiko-vitl14"), "tiles.mpp", FOUR_SCALES, "S"),
    ((*MIDNIGHT, "midnight-8gpu"), "tiles.mpp", FOUR_SCALES, "A"),
    (("midnight-392",), "tiles.mpp", [0.125, 0.25, 0.5, 1.0], "S"),
    (SMALL_HEADS, "tiles.mpp", RANGE, "O"),
    (("quickstart",), "tiles.mpp", [0.5, 1.0, 2.0], "O"),
    ((*DINO, "kaiko-vitl14", *MIDNIGHT, "midnight-392"), "tiles.mpp_weights", [1.0] * 4, "O"),
    ((*DINO, "kaiko-vitl14", *MIDNIGHT, *PRESETS), "tiles.size_px", 256, "S"),
    (("midnight-392",), "tiles.size_px", 512, "S"),
    ((*DINO, "kaiko-vitl14"), "tiles.min_foreground", 0.4, "O"),
    ((*MIDNIGHT, "midnight-392", *PRESETS), "tiles.min_foreground", 0.4, "S"),
    ((*DINO, "kaiko-vitl14"), "tiles.hsv_share", None, "O"),
    ((*MIDNIGHT, "midnight-392", *PRESETS), "tiles.hsv_share", 0.6, "S"),
    ((*DINO, "kaiko-vitl14", *MIDNIGHT, *PRESETS), "tiles.max_upsample", 1.05, "O"),
    (("midnight-392",), "tiles.max_upsample", 2.1, "R"),
]
VIEWS: list[Row] = [
    ((*DINO, "kaiko-vitl14", *MIDNIGHT, *PRESETS), "views.global_px", 224, "C"),
    (("midnight-392",), "views.global_px", 392, "S"),
    (("quickstart",), "views.global_px", 96, "O"),
    (DINO, "views.global_scale", (0.4, 1.0), "C"),
    (DINOV2, "views.global_scale", (0.32, 1.0), "C"),
    (DINO, "views.local_px", 96, "C"),
    (("kaiko-vitl14", *MIDNIGHT, *PRESETS), "views.local_px", 98, "C"),
    (("midnight-392",), "views.local_px", 168, "S"),
    (("quickstart",), "views.local_px", 48, "O"),
    (DINO, "views.local_scale", (0.05, 0.4), "C"),
    (DINOV2, "views.local_scale", (0.05, 0.32), "C"),
    ((*DINO, "kaiko-vitl14", *MIDNIGHT, "midnight-392", *PRESETS), "views.local_count", 8, "C"),
    (("quickstart",), "views.local_count", 4, "O"),
    ((*DINO, *DINOV2), "views.global_count", 2, "C"),
    ((*DINO, "kaiko-vitl14"), "views.hed_sigma", 0.0, "O"),
    ((*MIDNIGHT, "midnight-392", "midnight-8gpu", "midnight-1gpu", "quickstart"), "views.hed_sigma", 0.05, "O"),
    (("vits14-1h",), "views.hed_sigma", 0.06, "R"),
    (KDE, "views.hed_probability", 1.0, "S"),
    *(((*DINO, "kaiko-vitl14"), f"views.{key}", full, "C")
      for key, full in (("brightness", 0.4), ("contrast", 0.4), ("saturation", 0.2), ("hue", 0.1),
                        ("solarise_probability", 0.2))),
    *((KDE, f"views.{key}", half, "R")
      for key, half in (("brightness", 0.2), ("contrast", 0.2), ("saturation", 0.1), ("hue", 0.05),
                        ("solarise_probability", 0.0))),
    *(((*DINO, *DINOV2), f"views.{key}", value, mark)
      for key, value, mark in (
          ("jitter_probability", 0.8, "C"), ("grey_probability", 0.2, "C"), ("blur_probability", (1.0, 0.1, 0.5), "C"),
          ("blur_sigma", (0.1, 2.0), "C"), ("horizontal_flip", 0.5, "C"), ("vertical_flip", 0.5, "O"),
          ("quarter_turns", True, "O"), ("mean", (0.5, 0.5, 0.5), "A"), ("std", (0.5, 0.5, 0.5), "A"))),
]  # fmt: skip
OBJECTIVE: list[Row] = [
    (DINO, "objective.dino_prototypes", 65_536, "C"),
    (("kaiko-vitl14", *MIDNIGHT, "midnight-392", "midnight-8gpu"), "objective.dino_prototypes", 131_072, "C"),
    (("kaiko-vitl14", *MIDNIGHT, "midnight-392", "midnight-8gpu"), "objective.ibot_prototypes", 131_072, "C"),
    (SMALL_HEADS, "objective.dino_prototypes", 65_536, "O"),
    (SMALL_HEADS, "objective.ibot_prototypes", 65_536, "O"),
    (("quickstart",), "objective.dino_prototypes", 2_048, "O"),
    (("quickstart",), "objective.ibot_prototypes", 2_048, "O"),
    (DINO, "objective.dino_bottleneck", 256, "C"),
    (DINOV2, "objective.dino_bottleneck", 384, "C"),
    (DINOV2, "objective.ibot_bottleneck", 256, "C"),
    ((*DINO, *DINOV2), "objective.head_hidden", 2_048, "C"),
    (DINO, "objective.ibot_weight", 0.0, "C"),
    (DINOV2, "objective.ibot_weight", 1.0, "C"),
    (DINO, "objective.train_gain", False, "C"),
    (DINOV2, "objective.train_gain", True, "C"),
    ((*DINO, *DINOV2), "objective.shared_head", False, "C"),
    (DINO, "objective.targets", "centering", "C"),
    (DINO, "objective.center_momentum", 0.9, "C"),
    (DINOV2, "objective.targets", "sinkhorn", "C"),
    (DINOV2, "objective.sinkhorn_iterations", 3, "C"),
    ((*DINO, *DINOV2), "objective.student_temperature", 0.1, "C"),
    (DINOV2, "objective.mask_probability", 0.5, "C"),
    (DINOV2, "objective.mask_ratio", (0.1, 0.5), "C"),
    (DINO, "objective.uniformity", "none", "C"),
    (("kaiko-vitl14",), "objective.uniformity", "koleo", "C"),
    (("kaiko-vitl14",), "objective.uniformity_weight", 0.1, "C"),
    (KDE, "objective.uniformity", "kde", "S"),
    ((*MIDNIGHT, "midnight-392", "midnight-8gpu", "quickstart"), "objective.kappa", 5.0, "R"),
    ((*MIDNIGHT, "midnight-392", "midnight-8gpu", "quickstart"), "objective.uniformity_weight", 0.05, "O"),
    (("midnight-1gpu",), "objective.kappa", 10.0, "O"),
    (("midnight-1gpu",), "objective.uniformity_weight", 0.005, "O"),
    (("vits14-1h",), "objective.kappa", 10.0, "R"),
    (("vits14-1h",), "objective.uniformity_weight", 0.005, "R"),
]
OPTIM: list[Row] = [
    (DINO, "optim.base_lr", 5e-4, "C"),
    (DINO, "optim.lr_rule", "linear-256", "C"),
    (("kaiko-vitl14",), "optim.base_lr", 2e-4, "C"),
    (("kaiko-vitl14",), "optim.lr_rule", "sqrt-1024", "C"),
    (MIDNIGHT, "optim.base_lr", 3.5e-4, "S"),
    (("midnight-392",), "optim.base_lr", 1e-4, "S"),
    ((*MIDNIGHT, "midnight-392"), "optim.lr_rule", "sqrt-1024", "S"),
    (("midnight-8gpu",), "optim.base_lr", 2e-4, "R"),
    (("midnight-8gpu",), "optim.lr_rule", "sqrt-1024", "R"),
    (("midnight-1gpu",), "optim.base_lr", 3e-4, "O"),
    (("midnight-1gpu",), "optim.lr_rule", "sqrt-1024", "O"),
    (("vits14-1h",), "optim.base_lr", 1e-4, "R"),
    (("vits14-1h",), "optim.lr_rule", "none", "R"),
    (("quickstart",), "optim.base_lr", 5e-4, "O"),
    (("quickstart",), "optim.lr_rule", "none", "O"),
    (DINO, "optim.warmup_steps", "10%", "C"),
    (("kaiko-vitl14",), "optim.warmup_steps", 12_500, "C"),
    (MIDNIGHT, "optim.warmup_steps", 12_500, "R"),
    (("midnight-392",), "optim.warmup_steps", 1_000, "O"),
    ((*PRESETS, "quickstart"), "optim.warmup_steps", "10%", "O"),
    (DINO, "optim.momentum", (0.996, 1.0), "C"),
    (("kaiko-vitl14", *MIDNIGHT, *PRESETS), "optim.momentum", (0.994, 1.0), "C"),
    (("midnight-392",), "optim.momentum", (0.9995, 0.9995), "R"),
    (("quickstart",), "optim.momentum", (0.99, 1.0), "O"),
    (DINO, "optim.weight_decay", (0.04, 0.4), "C"),
    (("kaiko-vitl14", *MIDNIGHT, *PRESETS), "optim.weight_decay", (0.04, 0.2), "C"),
    (("midnight-392",), "optim.weight_decay", (0.2, 0.2), "R"),
    (("quickstart",), "optim.weight_decay", (0.04, 0.04), "O"),
    (DINO, "optim.teacher_temperature", (0.04, 0.04), "C"),
    (("kaiko-vitl14", *MIDNIGHT, *PRESETS, "quickstart"), "optim.teacher_temperature", (0.04, 0.07), "C"),
    (("kaiko-vitl14", *MIDNIGHT), "optim.teacher_temperature_steps", 37_500, "C"),
    ((*PRESETS, "quickstart"), "optim.teacher_temperature_steps", "30%", "O"),
    (("midnight-392",), "optim.teacher_temperature", (0.07, 0.07), "R"),
    (DINO, "encoder.drop_path", 0.1, "C"),
    (DINO, "encoder.drop_path_form", "sample", "C"),
    (DINO, "encoder.drop_path_law", "linear", "C"),
    (("kaiko-vitl14", *MIDNIGHT, "midnight-392", "midnight-8gpu"), "encoder.drop_path", 0.4, "C"),
    (DINOV2, "encoder.drop_path_form", "subset", "C"),
    (("midnight-1gpu",), "encoder.drop_path", 0.2, "O"),
    (("vits14-1h",), "encoder.drop_path", 0.1, "O"),
    (("quickstart",), "encoder.drop_path", 0.0, "O"),
    ((*DINO, "kaiko-vitl14", *MIDNIGHT, "midnight-8gpu", "quickstart"), "optim.layer_decay", 1.0, "C"),
    (("midnight-392",), "optim.layer_decay", 0.9, "R"),
    (("midnight-1gpu",), "optim.layer_decay", 0.9, "O"),
    (("vits14-1h",), "optim.layer_decay", 0.7, "R"),
    (DINO, "optim.patch_embed_factor", 1.0, "C"),
    (("kaiko-vitl14", *MIDNIGHT, "midnight-392", *PRESETS), "optim.patch_embed_factor", 0.2, "C"),
    ((*DINO, *DINOV2), "optim.clip", 3.0, "C"),
    (DINO, "optim.clip_by", "tensor", "C"),
    (DINOV2, "optim.clip_by", "module", "C"),
    (DINO, "optim.freeze_last_layer_steps", 5_000, "C"),
    (("kaiko-vitl14", *MIDNIGHT), "optim.freeze_last_layer_steps", 1_250, "C"),
    (("midnight-392",), "optim.freeze_last_layer_steps", 0, "R"),
    ((*PRESETS, "quickstart"), "optim.freeze_last_layer_steps", "1%", "O"),
    (DINO, "optim.last_layer_freeze", "gradient", "C"),
    (DINOV2, "optim.last_layer_freeze", "rate", "C"),
    ((*DINO, *DINOV2), "optim.min_lr", 1e-6, "C"),
    ((*DINO, *DINOV2), "optim.betas", (0.9, 0.999), "C"),
    ((*DINO, *DINOV2), "optim.eps", 1e-8, "C"),
    (("vits14-1h",), "optim.uniformity_ramp", (0.1, 0.5), "R"),
]
LENGTH: list[Row] = [
    (DINO, "run.batch", 256, "S"),
    (DINO, "run.steps", 100 * 5_000, "O"),
    (("kaiko-vitl14",), "run.batch", 1_024, "O"),
    (("kaiko-vitl14",), "run.steps", 125_000, "O"),
    (MIDNIGHT, "run.batch", 768, "S"),
    (MIDNIGHT, "run.steps", 300 * 1_667, "I"),
    (MIDNIGHT, "run.group", 12, "O"),
    (("midnight-392",), "run.batch", 48 * 6 * 4, "S"),
    (("midnight-392",), "run.steps", 30_000, "I"),
    (("midnight-392",), "run.group", 6, "O"),
    (("midnight-8gpu",), "run.batch", 384, "R"),
    (("midnight-8gpu",), "run.steps", 137_500, "R"),
    (("midnight-1gpu",), "run.batch", 256, "O"),
    (("midnight-1gpu",), "run.steps", 100_000, "O"),
    (("vits14-1h",), "run.batch", 128, "R"),
    (("vits14-1h",), "run.steps", 7_812, "R"),
    (("quickstart",), "run.batch", 32, "O"),
    (("quickstart",), "run.steps", 300, "O"),
    (("quickstart",), "run.minutes", 4, "O"),
    ((*DINO, "kaiko-vitl14", *PRESETS, "quickstart"), "run.group", 16, "O"),
]  # fmt: skip
STARTS: list[tuple[str, str, str]] = [
    ("kaiko-vits16", "vit_small_patch16_224.dino", "O"),
    ("kaiko-vits8", "vit_small_patch8_224.dino", "O"),
    ("kaiko-vitb16", "vit_base_patch16_224.dino", "O"),
    ("kaiko-vitb8", "vit_base_patch8_224.dino", "O"),
    ("kaiko-vitl14", "vit_large_patch14_reg4_dinov2.lvd142m", "O"),
    ("midnight-12k", "vit_giant_patch14_dinov2.lvd142m", "A"),
    ("midnight-92k", "vit_giant_patch14_dinov2.lvd142m", "A"),
    ("midnight-8gpu", "vit_giant_patch14_reg4_dinov2.lvd142m", "O"),
    ("midnight-1gpu", "vit_base_patch14_reg4_dinov2.lvd142m", "O"),
    ("vits14-1h", "vit_small_patch14_reg4_dinov2.lvd142m", "O"),
]


@pytest.fixture(scope="module")
def loaded() -> dict[str, tuple[Recipe, dict[str, str]]]:
    """Every shipped recipe with its marks."""
    return {name: load_recipe(name) for name in shipped_recipes()}


Loaded = dict[str, tuple[Recipe, dict[str, str]]]


def test_all_are_here(loaded: Loaded) -> None:
    assert set(loaded) == {*DINO, *DINOV2, *PYRAMIDS}
    for name, (recipe, marks) in loaded.items():
        assert recipe.name == name
        assert recipe.description
        assert set(marks) == set(leaves(recipe_values(recipe))) - {"name", "description"}
        paper = {"P"} if name in PYRAMIDS else set()
        assert set(marks.values()) <= set(MARKS) - {"U", "P"} | paper, "no other paper was at hand, and no user"


GROUPS = {"tiles": TILES, "views": VIEWS, "objective": OBJECTIVE, "optim": OPTIM, "run": LENGTH}


@pytest.mark.parametrize("rows", GROUPS.values(), ids=GROUPS)
def test_values_and_marks(loaded: Loaded, rows: list[Row]) -> None:
    wrong = []
    for names, key, value, mark in rows:
        for name in names:
            recipe, marks = loaded[name]
            held: Any = recipe
            for part in key.split("."):
                held = getattr(held, part)
            held = held.model_dump() if hasattr(held, "model_dump") else held
            held_marks = {marks[at] for at in marks if at == key or at.startswith(f"{key}.")}
            if held != value or held_marks != {mark}:
                wrong.append(f"{name} {key}: {held} {held_marks}, the table says {value} {mark}")
    assert not wrong


def test_the_table_leaves_nothing_that_matters_out(loaded: Loaded) -> None:
    """Each load-bearing value of each recipe is in exactly one row."""
    rows = [row for group in GROUPS.values() for row in group]
    for name in set(loaded) - set(PYRAMIDS):  # theirs are in test_curriculum.py
        keys = [key for names, key, _, _ in rows if name in names]
        assert len(keys) == len(set(keys))
        for key in (
            "tiles.mpp", "views.global_px", "views.local_px", "views.global_scale", "views.local_scale",
            "views.hed_sigma", "objective.dino_prototypes", "objective.targets", "objective.uniformity",
            "optim.base_lr", "optim.lr_rule", "optim.warmup_steps", "optim.momentum", "optim.weight_decay",
            "optim.teacher_temperature", "encoder.drop_path", "optim.layer_decay", "optim.clip_by",
            "optim.freeze_last_layer_steps", "run.batch", "run.steps",
        ):  # fmt: skip
            assert key in keys, f"{name} {key}"


def test_learning_rates_in_force(loaded: Loaded) -> None:
    peaks = {name: recipe.optim.peak_lr(recipe.run.batch) for name, (recipe, _) in loaded.items()}
    assert peaks["kaiko-vitb8"] == pytest.approx(5e-4)
    assert peaks["kaiko-vitl14"] == pytest.approx(2e-4)
    assert peaks["midnight-92k"] == pytest.approx(3.03e-4, rel=1e-3)
    assert peaks["midnight-392"] == pytest.approx(1.06e-4, rel=1e-3)
    assert peaks["midnight-8gpu"] == pytest.approx(1.22e-4, rel=5e-3)
    assert peaks["midnight-1gpu"] == pytest.approx(1.5e-4)


@pytest.mark.parametrize(("name", "start", "mark"), STARTS)
def test_the_encoder_is_that_of_its_start_weights(loaded: Loaded, name: str, start: str, mark: str) -> None:
    recipe, marks = loaded[name]
    assert (recipe.start, marks["start"]) == (start, mark)
    theirs = config_of_timm(start, num_classes=0)
    for key in ("width", "depth", "heads", "patch", "grid", "registers", "ffn", "ffn_hidden", "norm_eps"):
        assert getattr(recipe.encoder, key) == getattr(theirs, key), key
    assert (recipe.encoder.layer_scale is None) == (theirs.layer_scale is None)


def test_starts_without_public_weights(loaded: Loaded) -> None:
    assert (loaded["midnight-392"][0].start, loaded["midnight-392"][1]["start"]) == ("parent", "R")
    assert (loaded["quickstart"][0].start, loaded["quickstart"][1]["start"]) == ("random", "O")
    assert loaded["midnight-392"][0].encoder == loaded["midnight-12k"][0].encoder


def test_92k_is_the_same_recipe(loaded: Loaded) -> None:
    one, other = (recipe_values(loaded[name][0]) for name in MIDNIGHT)
    assert {key for key in one if one[key] != other[key]} == {"name", "description"}
    assert loaded["midnight-12k"][1] == loaded["midnight-92k"][1]


def test_batches_divide_over_usual_machines(loaded: Loaded) -> None:
    usual = dict.fromkeys(loaded, (1, 2, 4, 8))
    usual |= {"quickstart": (1, 2), "pyramid-quickstart": (1, 2)}
    usual |= {"midnight-12k": (1, 8, 32), "midnight-92k": (1, 8, 32), "midnight-392": (1, 8, 48)}
    for name, machines in usual.items():
        for gpus in machines:
            check_split(loaded[name][0], gpus)
