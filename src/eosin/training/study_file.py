"""A study file: a base recipe, what every run changes, what each arm changes, which seeds, which probes.

    name: uniformity
    base: vits14-1h
    set: {run.steps: 2000}
    arms:
      kde: {objective.uniformity: kde}
      none: {objective.uniformity: none}
    seeds: [0, 1, 2]
    probes: [mine=labels.csv]
    compare: none

`grid: {key: [values]}` in place of `arms` makes an arm of every combination. Paths in `base` and `probes` are relative
to the file. Knows nothing of running.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from eosin.errors import RecipeError
from eosin.marks import parse_marked

Changes = dict[str, Any]
"""Dotted recipe keys and their values."""

FIXED = ("run.seed", "run.minutes")  # what a study decides itself


def _named(values: Any) -> Any:
    """Arm names as text; an arm without changes is the base itself."""
    if not isinstance(values, dict):
        return values
    for name in values:
        if isinstance(name, bool) or name is None:
            raise ValueError(f"YAML reads the arm name {name} as a {type(name).__name__}; put it in quotes")
    return {str(name): {} if changes is None else changes for name, changes in values.items()}


@dataclass(frozen=True)
class Arm:
    """One of the settings that a study compares."""

    name: str
    changes: Changes

    @property
    def folder(self) -> str:
        """The name as a folder is called."""
        return re.sub(r"[^A-Za-z0-9.=+_-]+", "-", self.name).strip("-.")


class Study(BaseModel):
    """Runs that differ in what `arms` or `grid` change, each with every seed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(min_length=1)
    description: str = ""
    base: str = Field(description="recipe that all runs start from")
    changes: Changes = Field({}, alias="set", description="changes of every run")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field({}, description="an arm of every combination")
    arms: Annotated[dict[str, Changes], BeforeValidator(_named)] = Field({}, description="arms by name")
    seeds: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    budget_steps: int | None = Field(None, ge=1, description="steps of every run; the recipe's own without")
    probes: list[str] = Field([], description="NAME=PATH of labelled tiles")
    protocol: str = Field("knn,logreg", description="how probes are judged, names of `eosin eval --protocol`")
    pooling: Literal["cls", "cls+mean", "mean"] = Field("cls+mean", description="of the embedding that is probed")
    compare: str | None = Field(None, description="arm that the others are compared with; the first without")

    @model_validator(mode="after")
    def _makes_sense(self) -> Study:
        if bool(self.grid) == bool(self.arms):
            raise ValueError("give either `arms` or `grid`")
        for key in (*self.changes, *self.grid, *(key for changes in self.arms.values() for key in changes)):
            if key in FIXED:
                raise ValueError(f"{key} is not a study's to change: use `seeds` and `budget_steps`")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds}: one is given twice")
        arms = self.all_arms()
        folders = [arm.folder.lower() for arm in arms]
        for arm, folder in zip(arms, folders, strict=True):
            if not folder or folders.count(folder) > 1:
                raise ValueError(f"arm {arm.name!r}: its folder would be {folder!r}, not a name of its own")
        if self.reference not in (arm.name for arm in arms):
            raise ValueError(f"compare: no arm {self.reference!r}; there are {', '.join(arm.name for arm in arms)}")
        return self

    @property
    def reference(self) -> str:
        """Name of the arm that the others are compared with."""
        return self.compare if self.compare is not None else self.all_arms()[0].name

    def all_arms(self) -> list[Arm]:
        """The arms in the order of the file; of a grid, the last key changes fastest."""
        if self.arms:
            return [Arm(name, changes) for name, changes in self.arms.items()]
        short = [key.rpartition(".")[2] for key in self.grid]
        names = [key if short.count(last) > 1 else last for key, last in zip(self.grid, short, strict=True)]
        return [
            Arm(", ".join(f"{name}={_text(value)}" for name, value in zip(names, values, strict=True)), dict(changes))
            for values in itertools.product(*self.grid.values())
            for changes in [zip(self.grid, values, strict=True)]
        ]

    def settings(self, arm: Arm, seed: int, more: Sequence[str] = ()) -> list[str]:
        """What a run changes in the base recipe, as `load_recipe` takes it; later ones win.

        more: changes of every run such as "run.batch=64", above the file's and below the arm's.
        """
        steps = {} if self.budget_steps is None else {"run.steps": self.budget_steps}
        shared = as_settings({**self.changes, **steps, "run.minutes": None})
        return [*shared, *more, *as_settings(arm.changes), f"run.seed={seed}"]


def as_settings(changes: Changes) -> list[str]:
    """Changes as `--set` takes them: "key=value"."""
    return [f"{key}={_text(value)}" for key, value in changes.items()]


def _text(value: Any) -> str:
    """A value as YAML on one line, which reads back as the same value."""
    written = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return written.strip().removesuffix("...").strip()


def shipped_studies() -> dict[str, str]:
    """Names of the studies that come with eosin, with their one-line descriptions."""
    found = {}
    for file in sorted(files("eosin.studies").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            values, _ = parse_marked(file.read_text(encoding="utf-8"), file.name)
            found[file.name.removesuffix(".yaml")] = str(values.get("description", ""))
    return found


def load_study(name: str) -> Study:
    """A shipped study by name, or a YAML file by path. Raises RecipeError, one line that names the key."""
    shipped = files("eosin.studies") / f"{name}.yaml"
    folder: Path | None = None
    if "/" not in name and shipped.is_file():
        text = shipped.read_text(encoding="utf-8")
    elif Path(name).suffix in (".yaml", ".yml"):
        folder = Path(name).parent
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read study {name}: {getattr(error, 'strerror', None) or error}") from error
    else:
        raise RecipeError(f"no study called {name}; there are {', '.join(shipped_studies())}, or give a .yaml file")
    values, _ = parse_marked(text, f"study {name}")
    values.setdefault("name", Path(name).stem)
    try:
        study = Study.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"study {name}: {_first_problem(error)}") from error
    return study if folder is None else _with_paths(study, folder)


def _with_paths(study: Study, folder: Path) -> Study:
    """The study with the paths of its file made relative to where eosin runs."""
    base = study.base
    if Path(base).suffix in (".yaml", ".yml"):
        base = str(folder / Path(base).expanduser())
    probes = []
    for probe in study.probes:
        task, equals, path = probe.partition("=")
        probes.append(f"{task}={folder / Path(path).expanduser()}" if equals and path else probe)
    return study.model_copy(update={"base": base, "probes": probes})


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    known = ", ".join(field.alias or name for name, field in Study.model_fields.items())
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; known keys: {known}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}" if key else message
