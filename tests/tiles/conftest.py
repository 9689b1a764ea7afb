"""A small cohort of synthetic slides, written once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from eosin.slides import Cohort
from eosin.slides.synthetic import write_slides
from eosin.tiles import SlideSource, TilePlan, TilesConfig


@pytest.fixture(scope="session")
def slide_paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three slides of 1,024 px at 0.5 µm/px."""
    return write_slides(tmp_path_factory.mktemp("slides"), count=3, size_px=1024, workers=1)


@pytest.fixture(scope="session")
def cohort(slide_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    """Their cohort; slides 1 and 2 are of one patient."""
    folder = tmp_path_factory.mktemp("cohort")
    names = [path.name for path in slide_paths]
    (folder / "patients.csv").write_text(f"slide,patient\n{names[0]},P1\n{names[1]},P1\n{names[2]},P2\n")
    return Cohort.index(
        [str(path) for path in slide_paths],
        folder / "cohort.parquet",
        metadata=folder / "patients.csv",
        workers=0,
    )


def plan_of(cohort: Cohort, config: TilesConfig, seed: int) -> TilePlan:
    """The plan of one cohort."""
    return TilePlan([SlideSource(cohort, config, seed)], seed)
