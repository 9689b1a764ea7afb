"""A recipe: one YAML, checked value by value by the models that live next to the components they configure.

Extra keys are refused, every value of a shipped recipe carries a mark (eosin.marks), a user's own values get [U].
`base: NAME` starts from another shipped recipe. Knows nothing of running.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from eosin.errors import RecipeError
from eosin.marks import format_marked, leaves, parse_marked, read_marked
from eosin.models import EncoderConfig
from eosin.objectives import ObjectiveConfig
from eosin.optim import OptimConfig
from eosin.optim.schedules import Steps
from eosin.provenance import hash_of
from eosin.tiles import TilesConfig
from eosin.training.alarms import WatchConfig
from eosin.training.loggers import LoggerName
from eosin.views import ViewsConfig


class RunConfig(BaseModel):
    """How long, how large a batch, and what is written when. Steps may be shares of the run ("10%")."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int = Field(ge=1, description="tiles of the global batch")
    steps: int = Field(ge=1, description="optimiser steps")
    minutes: float | None = Field(None, gt=0, description="shorten `steps` to what fits, measured at the start")
    group: int = Field(16, ge=1, description="tiles that share a draw of mask ratios and drop-path subsets")
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp64"] = Field(
        "auto", description="of the networks; auto: bf16 where the device multiplies in it. Weights stay fp32"
    )
    workers: int | None = Field(None, ge=0, description="reading processes; by the number of cores without")
    log_every: int = Field(10, ge=1)
    log_to: list[LoggerName] = Field(["tensorboard"], description="beside metrics.jsonl: tensorboard, wandb, mlflow")
    monitor_every: Steps = "10%"
    monitor_tiles: int = Field(512, ge=2, description="tiles embedded for RankMe, ODCorr and uniformity")
    probe_protocol: str = Field("knn", description="how probes are judged, names of `eosin eval --protocol`")
    probe_steps: int = Field(
        200, ge=1, description="steps that heads and decoders of such a protocol train for, at most"
    )
    checkpoint_every: Steps = "10%"
    keep_last: int = Field(2, ge=1)
    keep_every: int | None = Field(None, ge=1, description="checkpoints at these steps are never removed")


class ParallelConfig(BaseModel):
    """How a run is spread over processes and memory (`training/parallel.py`). Changes nothing that is learned."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Literal["auto", "ddp", "fsdp"] = Field("auto", description="auto: fsdp where one GPU would be too small")
    accumulate: int = Field(1, ge=1, description="micro-batches a step, on every process")
    compile: bool = Field(False, description="compile every block (torch.compile)")
    recompute: Literal["none", "selective", "full"] = Field(
        "none", description="what blocks work out again for backward: selective keeps products and attention"
    )


class Recipe(BaseModel):
    """Everything that decides what a run learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str = ""
    start: str = Field(
        "random", description="random, a weights file, a timm or hub name, an exported model, or a run (its full state)"
    )
    encoder: EncoderConfig
    tiles: TilesConfig
    views: ViewsConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    run: RunConfig
    parallel: ParallelConfig = Field(default_factory=lambda: ParallelConfig.model_validate({}))
    watch: WatchConfig = Field(default_factory=lambda: WatchConfig.model_validate({}))

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        for name in ("global_px", "local_px"):
            size = getattr(self.views, name)
            if size % self.encoder.patch:
                raise ValueError(f"views.{name} {size} is not a multiple of encoder.patch {self.encoder.patch}")
        if self.run.batch % self.run.group:
            raise ValueError(f"run.batch {self.run.batch} is not a multiple of run.group {self.run.group}")
        if self.views.global_count != 2:
            raise ValueError("views.global_count must be 2: the objective pairs two global views")
        return self

    @property
    def hash(self) -> str:
        """Changes with every value that decides what is learned; not with how often something is written."""
        return hash_of(self.deciding_values())

    def deciding_values(self) -> dict[str, Any]:
        """The values behind `hash`."""
        told = self.model_dump(mode="json")
        for quiet in (
            "workers",
            "log_every",
            "log_to",
            "monitor_every",
            "monitor_tiles",
            "probe_protocol",
            "probe_steps",
            "checkpoint_every",
            "keep_last",
            "keep_every",
        ):
            told["run"].pop(quiet)
        told.pop("description")
        told.pop("parallel")
        told.pop("watch")
        return told


def is_curriculum(recipe: Recipe) -> bool:
    """Whether the recipe learns from whole slides as well as from tiles (`curriculum/`)."""
    return "pyramid" in type(recipe).model_fields


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes that come with eosin, with their one-line descriptions."""
    found = {}
    for file in sorted(files("eosin.recipes").iterdir(), key=lambda item: item.name):
        if file.name.endswith(".yaml"):
            values, _ = parse_marked(file.read_text(), file.name)
            found[file.name.removesuffix(".yaml")] = str(values.get("description", ""))
    return found


def load_recipe(name: str, changes: list[str] | None = None) -> tuple[Recipe, dict[str, str]]:
    """A shipped recipe by name, or a YAML file by path, with `changes` such as "run.batch=64" on top.

    Returns the recipe and the mark of each dotted key. Raises RecipeError, one line that names the key.
    """
    values, marks = _read(name, [])
    for change in changes or []:
        _apply(values, marks, change)
    model: type[Recipe] = Recipe
    if "pyramid" in values:
        from eosin.training.curriculum.recipe import CurriculumRecipe
        from eosin.training.curriculum.start import settled

        model, values = CurriculumRecipe, settled(values)
    try:
        recipe = model.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"recipe {name}: {_first_problem(error, model)}") from error
    return recipe, _all_marks(recipe, marks)


def _read(name: str, chain: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    if name in chain:
        raise RecipeError(f"recipe {name}: its bases go in a circle ({' → '.join([*chain, name])})")
    shipped = files("eosin.recipes") / f"{name}.yaml"
    if "/" not in name and shipped.is_file():
        values, marks = parse_marked(shipped.read_text(), f"recipe {name}")
        unmarked = [key for key in leaves(values) if key not in marks and key not in _TEXT]
        if unmarked:
            raise RecipeError(f"recipe {name}: {unmarked[0]} has no mark; write e.g. `!O` in front of the value")
    elif Path(name).suffix in (".yaml", ".yml"):
        values, marks = read_marked(name)
        marks = {key: marks.get(key, "U") for key in leaves(values) if key not in _TEXT}
        values.setdefault("name", Path(name).stem)
    else:
        raise RecipeError(f"no recipe called {name}; there are {', '.join(shipped_recipes())}, or give a .yaml file")
    base = values.pop("base", None)
    if base is None:
        return values, marks
    below, below_marks = _read(str(base), [*chain, name])
    below_marks = {key: mark for key, mark in below_marks.items() if not _replaced(key, values)}
    return _merge(below, values), {**below_marks, **marks}


_TEXT = ("name", "description", "base")  # keys that carry no mark
_CHOICES = ("mpp",)  # mappings that are one value: they replace, they do not merge


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, item in above.items():
        old = merged.get(key)
        mix = isinstance(item, dict) and isinstance(old, dict) and key not in _CHOICES
        merged[key] = _merge(old, item) if mix and isinstance(old, dict) else item
    return merged


def _replaced(key: str, above: dict[str, Any]) -> bool:
    """Whether a value below the choice `key` is replaced as a whole by the recipe on top."""
    node: Any = above
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
        if part in _CHOICES:
            return True
    return True


def _apply(values: dict[str, Any], marks: dict[str, str], change: str) -> None:
    key, equals, text = change.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set {change!r}: write it as key=value, for example run.batch=64")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {change!r}: the value is not YAML") from error
    node = values
    *path, last = key.split(".")
    for part in path:
        if not isinstance(node.get(part, {}), dict):
            raise RecipeError(f"--set {change!r}: {part} is a value, not a group of values")
        node = node.setdefault(part, {})
    node[last] = value
    for old in [old for old in marks if old.startswith(f"{key}.")]:
        del marks[old]
    marks[key] = "U"


def _first_problem(error: ValidationError, model: type[Recipe]) -> str:
    """One line for pydantic's first complaint, with the dotted key and, for a typo, the keys that exist."""
    problem = error.errors()[0]
    parts = [str(part) for part in problem["loc"] if not str(part).startswith(_UNION_PARTS)]
    key = ".".join(parts)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}; known keys there: {', '.join(_known_keys(parts[:-1], model))}{more}"
    if problem["type"] == "missing":
        return f"{key} is missing{more}"
    if key == "tiles.mpp":
        return "tiles.mpp: write a list such as [0.5, 1.0], or {low: 0.25, high: 2.0, law: uniform}"
    if problem["type"] == "model_type":
        return f"{key} is a group of values: {', '.join(_known_keys(parts, model))}{more}"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{more}" if key else f"{message}{more}"


_UNION_PARTS = ("list[", "MppRange", "constrained-")  # pydantic names the tried alternatives in the path


def _known_keys(path: list[str], recipe: type[Recipe]) -> list[str]:
    model: Any = recipe
    for part in path:
        if part.isdigit():  # an entry of a list of groups
            model = model.__args__[0]
            continue
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _all_marks(recipe: Recipe, marks: dict[str, str]) -> dict[str, str]:
    """Marks of every value in force: a value that no file gives is eosin's default, so it is ours."""
    return {key: marks.get(key) or _outer_mark(key, marks) for key in leaves(recipe_values(recipe)) if key not in _TEXT}


def _outer_mark(key: str, marks: dict[str, str]) -> str:
    outer = key.rpartition(".")[0]
    return marks.get(outer) or (_outer_mark(outer, marks) if outer else "O")


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as nested plain values."""
    return recipe.model_dump(mode="json")


def recipe_text(recipe: Recipe, marks: dict[str, str]) -> str:
    """The complete recipe as marked YAML, which `load_recipe` reads back."""
    return format_marked(recipe_values(recipe), marks)
