"""Task files: what a slide-level task is, beside the column that holds its labels.

    name: cptac-brca-tp53
    column: brca_tp53                # of the label table; `name` without it
    kind: binary                     # classification | binary | regression | survival
    classes: [wild, mut]             # in order; of a binary task the negative one first
    values: {wild: [wt, "0"], mut: ["1"]}    # other words for a class, any case
    counts: {train: {wild: 53, mut: 37}, test: {wild: 14, mut: 8}}

Shipped ones lie in `eosin.slide_tasks`: the six public tasks of EXAONE Path 2.0. Reads and checks; knows no labels.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eosin.errors import DataError

Kind = Literal["classification", "binary", "regression", "survival"]
SURVIVAL_BINS = 4


class Published(BaseModel):
    """Scores that others printed for the task, by model; anchors of the report, never mixed with own results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    metric: str
    scores: dict[str, float]


class TaskFile(BaseModel):
    """One task file. `split` and `source` are for people: how it is divided, where labels and slides come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    kind: Kind
    description: str = ""
    column: str = Field("", description="column of the label table; of survival the part before _time and _event")
    classes: tuple[str, ...] = ()
    values: dict[str, tuple[str, ...]] = Field(default_factory=dict, description="other words for a class, any case")
    bins: int = Field(SURVIVAL_BINS, ge=2, description="survival: time bins with equally many events")
    weight: float = Field(1.0, gt=0, description="of its loss where several tasks share a head")
    counts: dict[str, dict[str, int]] = Field(default_factory=dict, description="labels expected in each split")
    split: str = ""
    source: str = ""
    published: Published | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> TaskFile:
        if self.kind == "binary" and len(self.classes) != 2:
            raise ValueError("a binary task has two classes, the negative one first")
        if self.kind == "classification" and len(self.classes) < 2:
            raise ValueError("a classification task lists its classes")
        if self.kind in ("regression", "survival") and (self.classes or self.values or self.counts):
            raise ValueError(f"a {self.kind} task has no classes, values or counts")
        listed = [*self.values, *(name for split in self.counts.values() for name in split)]
        if unknown := [name for name in listed if name not in self.classes]:
            raise ValueError(f"{unknown[0]!r} is none of the classes {', '.join(self.classes)}")
        return self

    @property
    def source_column(self) -> str:
        """The column it is read from."""
        return self.column or self.name

    def class_of(self, word: str) -> str | None:
        """The class that `word` of a label table stands for; None for no class of it."""
        plain = word.strip().casefold()
        for name in self.classes:
            if plain in {name.casefold(), *(other.casefold() for other in self.values.get(name, ()))}:
                return name
        return None


@cache
def shipped_task_files() -> Mapping[str, TaskFile]:
    """The task files that come with eosin, by name."""
    found = {}
    for file in sorted(files("eosin.slide_tasks").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            task = _checked(file.read_text(), file.name)
            found[task.name] = task
    return found


def find_task(word: str, columns: list[str]) -> TaskFile | str:
    """What `--task word` means: a task file (path ending in .yaml, or a shipped name), or a column of the table.

    Raises DataError with the nearest known name where it is none of them.
    """
    if Path(word).suffix in (".yaml", ".yml"):
        try:
            return _checked(Path(word).read_text(), word)
        except OSError as error:
            raise DataError(f"cannot read task file {word}: {error.strerror}") from error
    if word in columns:
        return word
    if word in shipped_task_files():
        return shipped_task_files()[word]
    known = [*columns, *shipped_task_files()]
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    meant = f"; is {close[0]!r} meant?" if close else "."
    raise DataError(f"no task called {word!r}{meant} Known: {', '.join(known) or 'none'}")


def _checked(text: str, where: str) -> TaskFile:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"task file {where}: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"task file {where}: a task file is a mapping of keys to values")
    try:
        return TaskFile.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise DataError(
                f"task file {where}: unknown key {key}; known: {', '.join(TaskFile.model_fields)}"
            ) from error
        message = problem["msg"].removeprefix("Value error, ")
        raise DataError(f"task file {where}: {key + ': ' if key else ''}{message}") from error
