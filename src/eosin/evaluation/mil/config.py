"""Settings of `eosin mil train`: what is trained how, each value with a mark that says where it is from.

Defaults differ by head (`TRAINING`); `--set train.lr=2e-4`, `--set head.dropout=.1`, `--set protocol.folds=4` change
them. Marks are those of recipes (`eosin.marks`): A authors' files, P paper, S secondary readers, O ours, U the user's.
"""

from __future__ import annotations

import difflib
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eosin.errors import RecipeError
from eosin.evaluation.mil.bags import Group
from eosin.evaluation.mil.splits import PROTOCOLS, ProtocolConfig
from eosin.provenance import hash_of


class TrainSettings(BaseModel):
    """How one head is trained. Epochs are passes over its training bags."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: Literal["adam", "adamw"]
    lr: float = Field(gt=0)
    weight_decay: float = Field(ge=0, description="adam: added to the gradient (L2); adamw: decoupled")
    schedule: Literal["constant", "cosine"] = "constant"
    epochs: int = Field(ge=1)
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a lower validation loss")
    patience_after: int = Field(0, ge=0, description="and never before this epoch")
    batch: int = Field(1, ge=1, description="bags a step")
    balanced: bool = Field(False, description="draw bags with replacement, every class equally often")
    class_weights: bool = Field(False, description="weigh the loss of a class by its rarity")
    standardise: bool = Field(False, description="features to mean 0 and sd 1 of the training bags")
    max_tiles: int | None = Field(None, ge=1, description="tiles drawn of a larger bag at each visit; null: all")
    survival: Literal["hazard", "cox"] = Field("hazard", description="cox needs a batch of 32 bags or more")
    memory_gb: float = Field(8.0, gt=0, description="features kept in memory; the rest is read again")
    stack_gb: float = Field(2.0, gt=0, description="padded bags of the runs that train together")


_CLAM = {
    "optimizer": ("adam", "A"),
    "lr": (1e-4, "A"),
    "weight_decay": (1e-5, "A"),
    "epochs": (200, "A"),
    "patience": (20, "A"),
    "patience_after": (50, "A"),
    "batch": (1, "A"),
}
_LINEAR = {
    "optimizer": ("adamw", "O"),
    "lr": (1e-3, "O"),
    "weight_decay": (1e-2, "O"),
    "epochs": (200, "O"),
    "patience": (20, "O"),
    "patience_after": (50, "O"),
    "batch": (8, "O"),
    "standardise": (True, "O"),
}
TRAINING: dict[str, dict[str, tuple[Any, str]]] = {
    # Lu et al., Nat Biomed Eng 2021: settings of the public code; its documented command has lr 2e-4.
    "clam-sb": _CLAM,
    "clam-mb": _CLAM,
    # The ABMIL that UNI's slide-level results are from, as others describe it.
    "abmil": {
        "optimizer": ("adamw", "S"),
        "lr": (1e-4, "S"),
        "weight_decay": (1e-5, "S"),
        "schedule": ("cosine", "S"),
        "epochs": (20, "S"),
        "batch": (1, "S"),
    },
    # Shao et al., NeurIPS 2021, with AdamW for its Lookahead over RAdam.
    "transmil": {
        "optimizer": ("adamw", "O"),
        "lr": (2e-4, "P"),
        "weight_decay": (1e-5, "P"),
        "epochs": (200, "P"),
        "patience": (10, "O"),
        "batch": (1, "P"),
    },
    "mean-linear": _LINEAR,
    "max-linear": _LINEAR,
    "linear": _LINEAR,
}
"""Of each head: setting -> (value, mark). What is not listed is TrainSettings' default, ours."""


class MilConfig(BaseModel):
    """Everything beside data and labels that decides what `eosin mil train` gives."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str
    head: dict[str, Any]
    train: TrainSettings
    protocol: ProtocolConfig
    group: Group = "slide"
    joint: bool = Field(False, description="one head for all tasks, not one each")

    @property
    def hash(self) -> str:
        """Of what decides the heads; where features are kept decides nothing."""
        told = self.model_dump(mode="json")
        for quiet in ("memory_gb", "stack_gb"):
            told["train"].pop(quiet)
        told["protocol"].pop("draws")
        return hash_of(told)


def make_config(
    kind: str, protocol: str, group: str = "slide", joint: bool = False, changes: list[str] | None = None
) -> tuple[MilConfig, dict[str, str]]:
    """The settings of a head under a protocol with `changes` ("train.lr=2e-4"), and the mark of each dotted key.

    Raises RecipeError with the nearest known word.
    """
    from eosin.models.mil import HEADS

    _one_of("head", kind, list(HEADS))
    _one_of("protocol", protocol, list(PROTOCOLS))
    _one_of("group", group, ["slide", "patient", "average"])
    values: dict[str, dict[str, Any]] = {
        "train": {key: value for key, (value, _) in TRAINING[kind].items()},
        "protocol": {"name": protocol},
        "head": {},
    }
    marks = {f"train.{key}": mark for key, (_, mark) in TRAINING[kind].items()}
    for change in changes or []:
        key, equals, text = change.partition("=")
        block, dot, name = key.strip().partition(".")
        if not equals or not dot or block not in values or name in ("", "name"):
            raise RecipeError(f"--set {change!r}: write train.KEY=…, head.KEY=… or protocol.KEY=…, e.g. train.lr=2e-4")
        values[block][name] = _value(change, text)
        marks[f"{block}.{name}"] = "U"
    if "seed" in values["head"]:
        raise RecipeError("--set head.seed: seeds are counted by --seeds")
    try:
        config = MilConfig(
            kind=kind,
            head=values["head"],
            train=TrainSettings.model_validate(values["train"]),
            protocol=ProtocolConfig.model_validate(values["protocol"]),
            group=group,  # type: ignore[arg-type]
            joint=joint,
        )
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = [*TrainSettings.model_fields, *ProtocolConfig.model_fields]
            raise RecipeError(f"--set: unknown key {key}{_nearest(key, known)}") from error
        raise RecipeError(f"--set {key}: {problem['msg']}") from error
    told = config.model_dump(mode="json")
    keys = [f"{block}.{key}" for block in ("train", "protocol") for key in told[block] if key != "name"]
    return config, {**{key: marks.get(key, "O") for key in keys}, **marks}


def _value(change: str, text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {change!r}: the value is not YAML") from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML reads 2e-4 as a word
        except ValueError:
            return value
    return value


def _one_of(what: str, word: str, known: list[str]) -> None:
    if word not in known:
        raise RecipeError(f"unknown {what} {word!r}{_nearest(word, known)}")


def _nearest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; is {close[0]!r} meant? Known: {', '.join(known)}" if close else f"; known: {', '.join(known)}"
