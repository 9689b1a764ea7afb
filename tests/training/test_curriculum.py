"""The curriculum's parts: labels of a cohort, the order of slides, views of regions, LoRA, the recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eosin.errors import DataError, RecipeError, WeightsError
from eosin.marks import leaves
from eosin.models import EncoderConfig, ViT
from eosin.models.pyramid_stage import Grids
from eosin.randomness import Words
from eosin.tiles.pyramid_grid import region_grid
from eosin.training import load_recipe
from eosin.training.curriculum import CurriculumRecipe
from eosin.training.curriculum.config import RegionViews, TaskValues
from eosin.training.curriculum.cost import SlideSizes, curriculum_flops, curriculum_memory
from eosin.training.curriculum.lora import add_lora, load_base, merged
from eosin.training.curriculum.networks import CurriculumNetworks
from eosin.training.curriculum.rates import curriculum_optimizer, curriculum_schedules
from eosin.training.curriculum.regions import RegionDino, draw_views
from eosin.training.curriculum.slides import SlideOrder
from eosin.training.curriculum.targets import SlideLabels, read_tasks
from eosin.training.dry_run import describe
from eosin.training.estimate import forward_flops
from eosin.training.recipe import recipe_text, recipe_values

from .curriculum_cases import TINY

PUBLISHED: list[tuple[str, Any, str]] = [
    ("encoder.width", 768, "A"),
    ("pyramid.region.width", 768, "A"),
    ("pyramid.slide.width", 768, "A"),
    ("pyramid.mpp", 0.5, "P"),
    ("pyramid.size_px", 256, "P"),
    ("pyramid.side", 16, "P"),
    ("step1.regions.side", 4, "P"),
    ("step2.regions.side", 16, "P"),
    ("pyramid.region.depth", 6, "O"),
    ("pyramid.slide.depth", 2, "O"),
    ("pyramid.slide.positions", "rotary", "O"),
    ("encoder.drop_path", 0.1, "O"),
    ("step1.regions.global_side", 3, "O"),
    ("step1.regions.local_side", 2, "O"),
    ("step2.regions.global_side", 14, "O"),
    ("step2.regions.local_side", 6, "O"),
    ("run.batch", 256, "O"),
    ("run.steps", 100_000, "O"),
    ("step1.regions.count", 32, "O"),
    ("step2.regions.count", 32, "O"),
    ("step2.slides", 32, "O"),
    ("step2.passes", 5, "O"),
    ("optim.base_lr", 5e-4, "O"),
    ("optim.warmup_steps", 10_000, "O"),
    ("optim.weight_decay", [0.04, 0.4], "O"),
    ("step2.tile_lr", 2e-5, "O"),
    ("step2.region_lr", 1e-4, "O"),
    ("step2.slide_lr", 1e-4, "O"),
    ("step2.heads_lr", 5e-4, "O"),
    ("step2.weight_decay", 0.05, "O"),
    ("step2.warmup_slides", 500, "O"),
    ("step2.tile_weight", 0.5, "O"),
    ("step2.region_weight", 0.5, "O"),
    ("step2.slide_weight", 1.0, "O"),
    ("step1.tile_weight", 1.0, "O"),
    ("step1.region_weight", 1.0, "O"),
    ("objective.ibot_weight", 0.0, "P"),
    ("whole_slide.region_grad", False, "O"),
]
"""Values of `exaone-path-2` and their marks, transcribed by hand."""


def test_the_recipe_is_what_was_published_and_says_what_was_not() -> None:
    recipe, marks = load_recipe("exaone-path-2")
    values = leaves(recipe_values(recipe))
    assert {(key, values[key], marks[key]) for key, value, _ in PUBLISHED if not isinstance(value, list)} == {
        row for row in PUBLISHED if not isinstance(row[1], list)
    }
    assert all(values[key] == value for key, value, _ in PUBLISHED)


@pytest.fixture(scope="module")
def recipe() -> CurriculumRecipe:
    """`pyramid-quickstart`, shrunk."""
    found = load_recipe("pyramid-quickstart", TINY)[0]
    assert isinstance(found, CurriculumRecipe)
    return found


def table(slides: int = 24) -> pd.DataFrame:
    """Usable rows of a cohort: msi is rare and known for half, age for all but one."""
    number = np.arange(slides)
    return pd.DataFrame(
        {
            "slide_id": [f"s{n}" for n in number],
            "patient": [f"p{n // 2}" for n in number],
            "msi": np.where(number < 12, np.where(number < 2, "msi", "mss"), None),
            "grade": [f"g{n % 3}" for n in number],
            "age": [np.nan, *(50.0 + number[1:] / 2)],
            "os_time": number + 1.0,
            "os_event": (number % 2).astype(float),
            "same": "x",
            "empty": None,
        }
    )


def tasks_of(*columns: str, learned: int = 24) -> SlideLabels:
    asked = [TaskValues(column=column) for column in columns]
    return read_tasks(Path("cohort.parquet"), table(), asked, np.arange(24) < learned)


def test_tasks_are_read_from_columns_as_eosin_mil_reads_them() -> None:
    labels = tasks_of("msi", "grade", "age", "os", learned=20)
    kinds = {task.name: (task.kind, task.outputs) for task in labels.tasks}
    assert kinds == {
        "msi": ("binary", 2),
        "grade": ("classification", 3),
        "age": ("regression", 1),
        "os": ("survival", 4),
    }
    assert labels.tasks[0].classes == ("mss", "msi")  # what says so is negative
    assert labels.known.sum(axis=0).tolist() == [12, 24, 23, 24]
    learned = table()["age"][1:20]
    assert labels.centre["age"] == pytest.approx((learned.mean(), learned.std(ddof=0)))
    targets = labels.targets(0)
    assert targets["msi"].tolist() == [1]
    assert targets["age"].isnan().all()
    assert targets["os"].tolist() == [[1.0, 0.0]]
    assert labels.targets(20)["msi"].tolist() == [-1]
    moved = labels.targets(5)["age"] * labels.centre["age"][1] + labels.centre["age"][0]
    assert moved.item() == pytest.approx(52.5)
    assert labels.take([20, 0]).targets(1)["msi"].tolist() == [1]


def test_columns_that_cannot_be_learned_are_one_line() -> None:
    for columns, told in {
        ("mis",): "no column mis to learn from; it has msi, grade, age, os",
        ("same",): "one class only (x)",
        ("empty",): "task empty: no slide of cohort.parquet has a label",
    }.items():
        with pytest.raises(DataError, match=told.replace("(", r"\(").replace(")", r"\)")):
            tasks_of(*columns)
    with pytest.raises(DataError, match="msi: the slides that are learned from have one class only"):
        read_tasks(Path("c"), table(), [TaskValues(column="msi")], np.arange(24) >= 2)
    few = table().assign(os_event=lambda rows: (rows["os_time"] < 4).astype(float))
    with pytest.raises(DataError, match="task os: of the slides that are learned from, 3 different event times cannot"):
        read_tasks(Path("c"), few, [TaskValues(column="os")], np.ones(24, bool))
    before = table().assign(os_time=-1.0)
    with pytest.raises(DataError, match="os_time"):
        read_tasks(Path("c"), before, [TaskValues(column="os")], np.ones(24, bool))
    with pytest.raises(DataError, match="needs columns msi_time and msi_event"):
        read_tasks(Path("c"), table(), [TaskValues(column="msi", kind="survival")], np.ones(24, bool))


def test_without_tasks_every_column_that_is_one_is_learned(capfd: pytest.CaptureFixture[str]) -> None:
    labels = read_tasks(Path("c"), table(), [], np.ones(24, bool))
    assert [task.name for task in labels.tasks] == ["msi", "grade", "age", "os"]
    assert "column same is not learned from" in capfd.readouterr().err


def test_a_column_that_turns_out_to_be_no_task_stops_no_run_that_did_not_ask_for_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = table().assign(os_event=np.arange(24) >= 12, age=lambda known: known["age"].where(known.index >= 12, 50.25))
    labels = read_tasks(Path("c"), rows, [], np.arange(24) < 12)
    assert [task.name for task in labels.tasks] == ["msi", "grade"]
    told = capfd.readouterr().err
    assert "task os: of the slides that are learned from, 0 different event times cannot" in told
    assert "column age is not learned from: task age: all labels are 50.25" in told


def test_none_is_a_class_as_for_eosin_mil() -> None:
    rows = table().assign(invasion=["none", "low", "high", "NA"] * 6)
    labels = read_tasks(Path("c"), rows, [TaskValues(column="invasion")], np.ones(24, bool))
    assert set(labels.tasks[0].classes) == {"none", "low", "high"}
    assert labels.known.sum() == 18


@pytest.mark.parametrize("sampling", ["passes", "balanced"])
def test_visits_are_the_slides_of_all_steps(sampling: str) -> None:
    order = SlideOrder(np.arange(24), tasks_of("msi"), 5, 1.5, sampling, 0)
    assert order.visits == sum(len(order.of_step(step)) for step in range(order.steps))


def test_a_pass_sees_every_slide_once() -> None:
    order = SlideOrder(np.arange(3, 13), tasks_of("grade"), 4, 2.0, "passes", seed=1)
    assert order.steps == 6
    for turn in range(2):
        seen = [slide for step in range(3) for slide in order.of_step(3 * turn + step)]
        assert sorted(seen) == list(range(3, 13))
    assert order.of_step(0) != order.of_step(3)
    assert order.of_step(2) == order.of_step(2)


def test_balanced_sampling_shows_rare_classes_and_half_labelled_tasks() -> None:
    order = SlideOrder(np.arange(24), tasks_of("msi", "grade"), 3, 100.0, "balanced", seed=1)
    steps = [order.of_step(step) for step in range(order.steps)]
    assert all(len(set(step)) == 3 for step in steps)
    share = np.mean([slide < 2 for step in steps for slide in step])
    assert share > 0.2  # 2 of 24 slides, a quarter of the draws before repeats in a step are drawn again


def test_what_is_drawn_does_not_depend_on_labels_of_held_out_slides() -> None:
    labels, numbers = tasks_of("age", learned=12), np.arange(12)
    other = labels.take(np.arange(24))
    other.values["age"] = np.where(np.arange(24) < 12, labels.values["age"], -99.0)
    steps = [SlideOrder(numbers, found, 3, 5.0, "balanced", seed=1) for found in (labels, other)]
    assert [steps[0].of_step(step) for step in range(20)] == [steps[1].of_step(step) for step in range(20)]


def test_views_hold_a_tile_and_lie_inside() -> None:
    place = Words(0, "places").permutations(64)[:9]
    grid = region_grid(np.append(place // 8, [0, 7]), np.append(place % 8, [8, 15]), side=8)
    views = RegionViews(side=8, count=1, global_side=7, local_side=2, local_count=20)
    wide, small = draw_views(grid, 0, views, Words(0, "views"))
    assert (len(wide), len(small)) == (2, 20)
    for side, view in [(7, view) for view in wide] + [(2, view) for view in small]:
        assert len(view.tiles)
        assert 0 <= view.row.min() <= view.row.max() < side
        assert 0 <= view.column.min() <= view.column.max() < side
        shift = grid.row[view.tiles] - view.row
        assert len(set(shift.tolist())) == 1


def test_region_dino_equals_dino_written_out(recipe: CurriculumRecipe) -> None:
    still = recipe.model_copy(
        update={
            "encoder": recipe.encoder.model_copy(update={"drop_path": 0.0}),
            "pyramid": recipe.pyramid.model_copy(
                update={"region": recipe.pyramid.region.model_copy(update={"drop_path": 0.0})}
            ),
        }
    )
    networks = CurriculumNetworks(still, ()).double()
    networks.region_center.normal_(generator=torch.Generator().manual_seed(1))
    grid = region_grid([0, 0, 1, 3], [0, 1, 2, 3], side=4)
    views = RegionViews(side=4, count=1, global_side=3, local_side=2, local_count=2)
    pixels = Words(3, "pixels").integers(256, 4, 16, 16, 3).astype(np.uint8)
    dino = RegionDino(
        networks,
        views,
        {"a": {0}},
        key=(5, 7),
        weight=0.5,
        temperatures=(0.1, 0.04),
        autocast=torch.autocast("cpu", enabled=False),
        tile_chunk=3,
    )
    vectors = networks.student.tile(torch.from_numpy(pixels)).detach().requires_grad_()
    dino.see("a", grid, 0, pixels)
    loss = dino.loss("a", grid, 0, vectors)
    loss.backward()
    assert vectors.grad is not None

    wide, small = draw_views(grid, 0, views, Words(5, "region views", 7, "a", 0))

    def logits(branch: object, view: object, side: int) -> torch.Tensor:
        seen = branch.region(  # type: ignore[attr-defined]
            branch.tile(torch.from_numpy(pixels))[view.tiles],  # type: ignore[attr-defined]
            Grids((len(view.tiles),), torch.from_numpy(view.row), torch.from_numpy(view.column)),  # type: ignore[attr-defined]
            None,
            (side, side),
        ).grids
        return branch.region_dino(seen).logits()[0]  # type: ignore[attr-defined, no-any-return]

    taught = [logits(networks.teacher, view, 3) for view in wide]
    targets = [torch.softmax((one - networks.region_center[0]) / 0.04, dim=0) for one in taught]
    said = [logits(networks.student, view, 3) for view in wide] + [logits(networks.student, view, 2) for view in small]
    terms = [
        -(target * torch.log_softmax(one / 0.1, dim=0)).sum()
        for teacher, target in enumerate(targets)
        for student, one in enumerate(said)
        if student != teacher
    ]
    assert loss.detach().item() == pytest.approx(0.5 * torch.stack(terms).mean().detach().item(), rel=1e-12)
    torch.testing.assert_close(dino.logit_sum[0], torch.stack(taught).sum(dim=0))
    assert dino.logit_count == 2


def test_lora_learns_beside_fixed_weights_and_is_merged_exactly() -> None:
    config = EncoderConfig(width=16, depth=2, heads=2, patch=8, grid=2)
    plain = ViT(config, torch.Generator().manual_seed(0))
    vit = ViT(config, torch.Generator().manual_seed(9))
    add_lora(vit, rank=3, alpha=6.0, generator=torch.Generator().manual_seed(1))
    load_base(vit, plain.state_dict())
    images = [torch.from_numpy(Words(2, "images").normal(4, 3, 16, 16)).float()]
    assert torch.equal(vit(images)[0].cls, plain(images)[0].cls)
    learned = [name for name, parameter in vit.named_parameters() if parameter.requires_grad]
    assert len(learned) == 2 * 2 * 2
    optimizer = torch.optim.SGD([p for p in vit.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        vit(images)[0].cls.square().sum().backward()
        optimizer.step()
    assert not torch.allclose(vit(images)[0].cls, plain(images)[0].cls)
    assert torch.equal(merged(vit)(images)[0].cls, vit(images)[0].cls)
    assert set(merged(vit).state_dict()) == set(plain.state_dict())


def test_lora_learns_in_the_precision_in_which_it_is_merged() -> None:
    vit = ViT(EncoderConfig(width=16, depth=1, heads=2, patch=8, grid=2), torch.Generator().manual_seed(0))
    add_lora(vit, rank=3, alpha=6.0, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        vit.blocks[0].attn.qkv.parametrizations.weight[0].up.normal_(generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        used = vit.blocks[0].attn.qkv.weight
    assert torch.equal(used, merged(vit).blocks[0].attn.qkv.weight)


def test_each_stage_has_its_rate(recipe: CurriculumRecipe) -> None:
    networks = CurriculumNetworks(recipe, tasks_of("msi").tasks)
    optimizer = curriculum_optimizer(recipe, networks)
    rate = {id(p): group["rate"] for group in optimizer.param_groups for p in group["params"]}
    pyramid = networks.student.pyramid
    wanted = {
        "encoder_lr": pyramid.tile,
        "region_lr": pyramid.region,
        "slide_lr": pyramid.slide,
        "heads_lr": pyramid.heads,
    }
    for name, stage in wanted.items():
        assert {rate[id(p)] for p in stage.parameters() if p.requires_grad} == {name}
    schedules = curriculum_schedules(recipe, 12, 4)
    assert schedules.curriculum_step.tolist() == [1.0] * 2 + [2.0] * 10
    row = schedules.at(3)
    assert row["heads_lr"] > row["region_lr"] > row["encoder_lr"] > 0
    assert row["weight_decay"] == recipe.step2.weight_decay
    # 4 slides of warm-up are one step of four slides, and four steps of one
    rates = curriculum_schedules(recipe, 12, 1).heads_lr[2:6]
    assert rates.tolist() == pytest.approx([recipe.step2.heads_lr * part / 4 for part in (1, 2, 3, 4)])


def test_what_changes_no_result_changes_no_hash(recipe: CurriculumRecipe) -> None:
    for quiet in ("whole_slide.tile_chunk=3", "step2.save_slides=0", "labels.watch_slides=5", "whole_slide.readers=2"):
        assert load_recipe("pyramid-quickstart", [*TINY, quiet])[0].hash == recipe.hash
    for loud in ("whole_slide.region_grad=true", "step2.slides=3", "tasks=[{column: msi}]", "labels.held_out=0.3"):
        assert load_recipe("pyramid-quickstart", [*TINY, loud])[0].hash != recipe.hash


def test_recipes_that_cannot_be_learned_are_one_line() -> None:
    for change, told in {
        "objective.ibot_weight=1.0": "learns by DINO alone",
        "step2.regions.side=5": "step2.regions.side must be pyramid.side",
        "run.minutes=3": "run.minutes does not go with a curriculum",
        "tasks=[{column: a}, {column: a}]": "column a is given twice",
        "tasks=[{column: a, kinds: b}]": "unknown key tasks.0.kinds; known keys there: column, kind, weight",
        "step2.tile_lrr=1.0": "unknown key step2.tile_lrr",
        "encoder=start": "does not tell its settings",
    }.items():
        with pytest.raises(RecipeError, match=told):
            load_recipe("pyramid-quickstart", [*TINY, change])


def test_a_dry_run_tells_both_steps_and_what_they_cost() -> None:
    told = describe("exaone-path-2", [], [], None, None, gpu="H100", gpus=8)
    assert "tile 85.8 M, region 42.7 M, slide 14.2 M" in told
    assert "100,000 x (256 tiles, 32 regions)" in told
    assert "5 passes over the labelled slides, 32 a step" in told
    # A step: 256 tiles of DINO by 430 GFLOP, 32 regions of 16 tiles twice by 46 GFLOP.
    work = next(line for line in told.splitlines() if line.startswith("work"))
    assert 14_000 < float(work.split("step 1 ")[1].split(" PFLOP")[0].replace(",", "")) < 18_000
    assert "on 8 x H100" in told
    assert "GB a process after each slide: step2.save_slides" in told


def test_too_little_memory_is_told_with_what_to_set() -> None:
    told = describe("exaone-path-2", [], [], None, None, gpu="RTX 4090", gpus=1)
    assert "too much for the 24 GB of RTX 4090: --set parallel.accumulate=" in told
    count = told.split("parallel.accumulate=")[1].split()[0]
    fits = describe("exaone-path-2", [], [], None, None, changes=[f"parallel.accumulate={count}"], gpu="RTX 4090")
    assert "too much" not in fits
    full = load_recipe("exaone-path-2", ["lora.rank=8"])[0]
    assert isinstance(full, CurriculumRecipe)
    few = curriculum_memory(full, 1, 1, "bf16")
    every = curriculum_memory(load_recipe("exaone-path-2")[0], 1, 1, "bf16")  # type: ignore[arg-type]
    assert few.saved < 0.6 * every.saved  # low-rank weights alone have gradients in stage 1


def test_the_flops_of_slides_are_those_that_the_networks_do() -> None:
    recipe = load_recipe("pyramid-quickstart", [*TINY, "step2.tile_weight=0.0", "step2.region_weight=0.0"])[0]
    assert isinstance(recipe, CurriculumRecipe)
    student = CurriculumNetworks(recipe, ()).student
    pixels = torch.zeros(3, 16, 16, 3, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        student.tile(pixels)
    assert 3 * forward_flops(recipe.encoder, 16) == pytest.approx(counter.get_total_flops(), rel=0.01)
    sizes = SlideSizes(steps=2, visits=8, tiles=30, regions=3, largest=50)
    still = recipe.model_copy(update={"step2": recipe.step2.model_copy(update={"tile_frozen_slides": 8})})
    learned, frozen = (curriculum_flops(one, sizes).step2 for one in (recipe, still))
    assert learned - frozen == pytest.approx((8 - 4) * 30 * 3 * forward_flops(recipe.encoder, 16))


def test_an_encoder_of_the_zoo_gives_its_settings() -> None:
    sizes = ["pyramid.tile_px=224", "views.global_px=224", "views.local_px=96"]
    recipe = load_recipe("exaone-path-2", [*sizes, "start=kaiko/vits16", "encoder=start"])[0]
    assert (recipe.encoder.width, recipe.encoder.patch, recipe.encoder.drop_path) == (384, 16, 0.1)


def test_a_run_goes_on_from_its_own_recipe_where_its_start_is_gone(tmp_path: Path) -> None:
    sizes = ["pyramid.tile_px=224", "views.global_px=224", "views.local_px=96"]
    recipe, marks = load_recipe("exaone-path-2", [*sizes, "start=kaiko/vits16", "encoder=start"])
    (tmp_path / "recipe.yaml").write_text(recipe_text(recipe, marks))
    assert load_recipe(str(tmp_path / "recipe.yaml"))[0].hash == recipe.hash
    with pytest.raises(WeightsError, match=r"goes on without it: eosin train RUN/recipe\.yaml"):
        load_recipe("exaone-path-2", [*sizes, f"start={tmp_path / 'gone'}", "encoder=start"])
