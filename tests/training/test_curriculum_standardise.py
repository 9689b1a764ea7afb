"""Attention pooling over standardised tile vectors as a run: what is measured, kept, gone on from, exported."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open

from eosin.errors import RecipeError
from eosin.features.embed import embed_slides
from eosin.features.pyramid_file import load_pyramid
from eosin.models.pyramid_encode import encode_slide
from eosin.runs import RunFolder, read_lines
from eosin.slides import Cohort
from eosin.training import load_recipe, train
from eosin.training.curriculum import curriculum_of, partial
from eosin.training.curriculum.rates import curriculum_schedules
from eosin.training.curriculum.recipe import CurriculumRecipe
from eosin.training.export import export_run

from .curriculum_cases import TINY, write_cohort

ATTENTION = [
    *("pyramid.region.depth=0", "pyramid.region.pool=gated", "pyramid.region.standardise=true"),
    *("pyramid.slide.depth=0", "pyramid.slide.pool=gated", "encoder.drop_path=0.0", "step2.regions.count=0"),
    *("run.steps=0", "step2.passes=3", "step2.tile_frozen_slides=9", "labels.held_out=0.0", "step2.slides=4"),
    *("tasks=[{column: grade}]", "whole_slide.keep_vectors_mb=1"),
]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten slides with labels."""
    return write_cohort(tmp_path_factory.mktemp("slides"))


def go(cohort: Path, out: Path, *changes: str) -> RunFolder:
    return train("pyramid-quickstart", out, cohort=[str(cohort)], set=[*TINY, *ATTENTION, *changes])


def tensors(run: RunFolder) -> dict[str, torch.Tensor]:
    """All tensors of the newest checkpoint."""
    found = {}
    for file in run.checkpoint(run.steps()[-1]).glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return found


@pytest.fixture(scope="module")
def run(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run to its end."""
    return go(cohort, tmp_path_factory.mktemp("run") / "run")


def test_it_is_measured_on_the_slides_that_are_learned_from(cohort: Path, tmp_path: Path) -> None:
    run = go(cohort, tmp_path / "run", "step2.tile_frozen_slides=999")  # stage 1 ends as it was measured
    state, model = tensors(run), load_pyramid(export_run(run.root, tmp_path / "model"))
    recipe = load_recipe("pyramid-quickstart", [*TINY, *ATTENTION])[0]
    slides = curriculum_of(recipe, [Cohort.read(cohort)]).slides
    vectors = []
    for slide in range(len(slides)):
        with slides.sample(slide, 4) as sample:
            vectors.append(encode_slide(model.pyramid, sample.grid, sample.read).tiles.double())
    every = torch.cat(vectors)
    assert max(map(len, vectors)) > 64  # of a slide, 64 are taken
    for branch in ("student.pyramid.region", "teacher.own_region"):
        mean, sd = state[f"networks.{branch}.mean"], state[f"networks.{branch}.sd"]
        assert ((mean - every.mean(dim=0)).abs() < 0.25 * every.std(dim=0)).all()
        torch.testing.assert_close(sd.double(), every.std(dim=0), rtol=0.25, atol=0)
    assert torch.equal(model.pyramid.region.mean, state["networks.student.pyramid.region.mean"])
    assert model.pyramid.region.config.standardise


def test_kept_vectors_change_nothing(cohort: Path, run: RunFolder, tmp_path: Path) -> None:
    other = tensors(go(cohort, tmp_path / "other", "whole_slide.keep_vectors_mb=0"))
    for name, value in tensors(run).items():
        torch.testing.assert_close(other[name], value, rtol=1e-5, atol=1e-6)


def test_stopped_it_goes_on_exactly(
    cohort: Path, run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stops in (2, 3):  # within the first step, and within the next one
        write, left = partial.PartialFile.write, [stops]

        def write_and_stop(self: partial.PartialFile, *words: Any) -> None:
            write(self, *words)  # noqa: B023
            left[0] -= 1  # noqa: B023
            if left[0] == 0:  # noqa: B023
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patched:
            patched.setattr(partial.PartialFile, "write", write_and_stop)
            with pytest.raises(Exception, match="stopped by a signal"):
                go(cohort, tmp_path / "parts")
    parts = go(cohort, tmp_path / "parts")
    one, other = tensors(run), tensors(parts)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_lines(run.root / "slides.jsonl") == read_lines(parts.root / "slides.jsonl")


def test_exported_it_embeds_slides(cohort: Path, run: RunFolder, tmp_path: Path) -> None:
    model = export_run(run.root, tmp_path / "model")
    embed_slides(model, [cohort], tmp_path / "upper", stage="slide")
    table = pq.read_table(tmp_path / "upper" / "slides.parquet").to_pandas()
    assert len(table) == 10
    assert np.isfinite(np.stack(table["output.grade"].to_list())).all()


def test_a_stage_s_rate_rises_when_it_begins_to_learn() -> None:
    recipe = load_recipe("pyramid-quickstart", [*TINY, *ATTENTION, "step2.region_frozen_slides=4"])[0]
    assert isinstance(recipe, CurriculumRecipe)
    rates = curriculum_schedules(recipe, 13, 1)
    assert rates.encoder_lr[:9].tolist() == [0.0] * 9
    assert rates.encoder_lr[9:].tolist() == pytest.approx([recipe.step2.tile_lr * part / 4 for part in (1, 2, 3, 4)])
    assert rates.region_lr[:5].tolist() == pytest.approx([0.0] * 4 + [recipe.step2.region_lr / 4])
    assert rates.heads_lr.min() > 0
    assert rates.lr.min() > 0  # of the heads of DINO
    assert curriculum_schedules(recipe, 6, 1).encoder_lr.tolist() == [0.0] * 6


def test_standardised_vectors_and_an_unstandardised_start_are_refused_in_one_line() -> None:
    with pytest.raises(RecipeError, match=r"standardise begins with step 2.*step1.regions.count 0 or run.steps 0"):
        load_recipe("pyramid-quickstart", [*TINY, *ATTENTION, "run.steps=2"])
    load_recipe("pyramid-quickstart", [*TINY, *ATTENTION, "run.steps=2", "step1.regions.count=0"])
    with pytest.raises(RecipeError, match="depth 0 needs pool gated"):
        load_recipe("pyramid-quickstart", [*TINY, "pyramid.slide.depth=0"])
