"""What others published: scores by model and task with their source, and how many slides an encoder was trained on.

The values are data (`published.yaml`). They are anchors: shown apart, named as published, in no rank and no average of
measured results. A value stands beside a measured column only where task, split and number of samples are the same.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from eosin.evaluation.leaderboard import Block, Column


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PublishedColumn(_Data):
    """What a column of a published table is. `n`: judged samples where they are known."""

    task: str
    split: str
    metric: str = "balanced_accuracy"
    n: int | None = Field(None, gt=0)


class Source(_Data):
    """One published table. `protocol`: ours that rebuilds it; `average`: the name of the mean that it prints."""

    title: str
    url: str
    protocol: str = ""
    note: str = ""
    average: str = ""
    columns: tuple[PublishedColumn, ...]
    models: dict[str, tuple[float | None, ...]]
    averages: dict[str, float] = Field(default_factory=dict, description="means as printed")

    @model_validator(mode="after")
    def _square(self) -> Source:
        for model, values in self.models.items():
            if len(values) != len(self.columns):
                raise ValueError(f"{model} has {len(values)} values for {len(self.columns)} columns")
        return self


class Slides(_Data):
    """Slides of the training set of an encoder, and where that was read."""

    slides: int = Field(gt=0)
    source: str


class _File(_Data):
    sources: dict[str, Source]
    trained_on: dict[str, Slides]


class Anchor(NamedTuple):
    """A published score. `same_protocol`: the source's protocol is that of the block it stands beside."""

    model: str
    value: float
    source: str
    same_protocol: bool


@cache
def published() -> dict[str, Source]:
    """All published tables by name."""
    return dict(_read().sources)


@cache
def slides_seen() -> dict[str, Slides]:
    """Zoo name -> slides it was trained on."""
    return dict(_read().trained_on)


def anchors_of(block: Block, column: Column) -> list[Anchor]:
    """What was published for a column: of the table made by the block's protocol, else of all others; best first."""
    found: list[Anchor] = []
    for name, source in published().items():
        same = bool(source.protocol) and block.protocol.partition("~")[0] == source.protocol
        for place, told in enumerate(source.columns):
            if (told.task, told.split) != (column.task, column.split) or not _alike(told.metric, column.metric):
                continue
            if told.n is not None and told.n != column.n:
                continue
            values = {model: row[place] for model, row in source.models.items()}
            found += [Anchor(model, value, name, same) for model, value in values.items() if value is not None]
    kept = [anchor for anchor in found if anchor.same_protocol] or found
    return sorted([*kept, *_slide_anchors(block, column)], key=lambda anchor: -anchor.value)


_DICE = frozenset({"dice", "dice_per_image", "dice_per_window"})


def _alike(metric: str, other: str) -> bool:
    """Whether two metrics may stand side by side: the same, or Dice averaged in two ways, whose protocols differ."""
    return metric == other or {metric, other} <= _DICE


def _slide_anchors(block: Block, column: Column) -> list[Anchor]:
    """Of the slide-level tasks that come with eosin."""
    if block.kind != "mil":
        return []
    from eosin.evaluation.mil.task_files import shipped_task_files

    told = shipped_task_files().get(column.task)
    if told is None or told.published is None or told.published.metric != column.metric:
        return []
    return [Anchor(model, value, "exaone-path-2", False) for model, value in told.published.scores.items()]


SLIDE_SOURCE = "EXAONE Path 2.0, arXiv 2507.06639, Table 1; other slides, splits and pipeline"


def source_words(name: str) -> str:
    """A source in one line."""
    if name == "exaone-path-2":
        return SLIDE_SOURCE
    source = published()[name]
    return ". ".join(filter(None, (source.title, source.note)))


def _read() -> _File:
    text = (files("eosin.evaluation") / "published.yaml").read_text(encoding="utf-8")
    return _File.model_validate(yaml.safe_load(text))
