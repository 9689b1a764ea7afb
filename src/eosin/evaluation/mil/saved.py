"""Trained heads as a folder (head.safetensors, config.json, README.md), and what they say of a slide.

All seeds and folds are kept; what they say is averaged: attention after its softmax, probabilities, values, risks.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eosin.errors import DataError, EosinError, WeightsError
from eosin.evaluation.mil.batches import Fixed
from eosin.evaluation.mil.fit import Fitted, in_units
from eosin.evaluation.mil.problems import predictions_of
from eosin.files import PathLike, atomic_folder, write_json, write_text
from eosin.models.mil import MilHead, build_head
from eosin.models.slide_task import SlideTask

STATE_FILE, CONFIG_FILE, CARD_FILE = "head.safetensors", "config.json", "README.md"
Floats = npt.NDArray[np.float32]


@dataclass
class _Member:
    """One run's head with what it needs to read features and to give values in units."""

    head: MilHead
    fixed: Fixed


class TrainedHeads:
    """Heads of `eosin mil train`, ready to score. `info`: head, width, tasks, model, model_hash, mpp, size …"""

    def __init__(self, groups: dict[str, list[_Member]], info: dict[str, Any], device: torch.device) -> None:
        self._groups = groups
        self.info = info
        self.device = device

    @property
    def tasks(self) -> tuple[SlideTask, ...]:
        """All tasks, in order."""
        return tuple(task for members in self._groups.values() for task in members[0].head.tasks)

    @property
    def branches(self) -> tuple[str, ...]:
        """Names of the attention branches; none for heads without attention."""
        return tuple(
            self._branch(name, branch) for name, members in self._groups.items() for branch in members[0].head.branches
        )

    def attention(self, features: npt.ArrayLike) -> dict[str, Floats]:
        """Features [N, D] -> branch -> attention [N], sum 1. "all", or "task: all" where tasks have heads of their own,
        or "task: class"; empty for heads without attention.
        """
        found: dict[str, Floats] = {}
        for name, members in self._groups.items():
            if not members[0].head.branches:
                continue
            shares = []
            for member in members:
                attention = self._run(member, features).attention
                assert attention is not None
                shares.append(attention[0].float().cpu().numpy())
            mean = np.mean(shares, axis=0)  # [branches, N]
            found |= {self._branch(name, branch): mean[k] for k, branch in enumerate(members[0].head.branches)}
        return found

    def scores(self, features: npt.ArrayLike) -> dict[str, dict[str, float]]:
        """Features [N, D] of a slide -> task -> {class: probability}, {"value": number} or {"risk": number}."""
        return {
            task.name: dict(zip(_names(task), map(float, values.mean(axis=0)), strict=True))
            for task, values in self._every(features)
        }

    def run_scores(self, features: npt.ArrayLike) -> dict[str, npt.NDArray[np.float64]]:
        """The same of every run: task -> [runs, C]."""
        return {task.name: values for task, values in self._every(features)}

    def tile_scores(self, features: npt.ArrayLike) -> dict[str, Floats]:
        """Features [N, D] -> "task: class" (or "task: value", "task: risk") -> what is said of each tile alone [N].

        Empty for `linear`, which reads one vector a slide.
        """
        found: dict[str, Floats] = {}
        for members in self._groups.values():
            if members[0].head.kind == "linear":
                continue
            for number, task in enumerate(members[0].head.tasks):
                said = []
                for member in members:
                    tiles = self._tiles(member, features)
                    logits = member.head.tile_outputs(tiles)[member.head.tasks[number].name].float().cpu().numpy()
                    said.append(predictions_of(task, in_units(task, logits, member.fixed)))
                mean = np.mean(said, axis=0).astype(np.float32)  # [N, C]
                found |= {f"{task.name}: {name}": mean[:, k] for k, name in enumerate(_names(task))}
        return found

    def _branch(self, group: str, branch: str) -> str:
        return f"{group}: {branch}" if branch == "all" and len(self._groups) > 1 else branch

    def _every(self, features: npt.ArrayLike) -> list[tuple[SlideTask, npt.NDArray[np.float64]]]:
        found = []
        for members in self._groups.values():
            outputs = [self._run(member, features).outputs for member in members]
            for task in members[0].head.tasks:
                logits = [own[task.name].float().cpu().numpy() for own in outputs]
                pairs = zip(members, logits, strict=True)
                said = [predictions_of(task, in_units(task, own, member.fixed)) for member, own in pairs]
                found.append((task, np.concatenate(said)))
        return found

    def _tiles(self, member: _Member, features: npt.ArrayLike) -> Tensor:
        tiles = np.asarray(features, dtype=np.float32)
        if tiles.ndim != 2 or not len(tiles) or tiles.shape[1] != member.head.width:
            raise DataError(
                f"these heads read features [tiles, {member.head.width}], not {list(tiles.shape)};"
                f" embed with {self.info.get('model') or 'the model that they were trained on'}"
            )
        if not np.isfinite(tiles).all():
            raise DataError("features are NaN or infinite in some tiles")
        if member.fixed.scale is not None:
            tiles = (tiles - member.fixed.scale[0]) / member.fixed.scale[1]
        return torch.from_numpy(tiles).to(self.device)

    @torch.no_grad()
    def _run(self, member: _Member, features: npt.ArrayLike) -> Any:
        tiles = self._tiles(member, features)[None]
        return member.head(tiles, torch.ones(tiles.shape[:2], dtype=torch.bool, device=self.device))


def _names(task: SlideTask) -> tuple[str, ...]:
    return task.classes or (("value",) if task.kind == "regression" else ("risk",))


def save_heads(
    folder: PathLike,
    groups: Sequence[tuple[str, tuple[SlideTask, ...], Sequence[Fitted]]],
    info: dict[str, Any],
    card: str,
) -> None:
    """Write the heads of all runs; `groups`: (name, its tasks, its runs); `info`: kind, width, settings and more."""
    tensors: dict[str, Tensor] = {}
    told: list[dict[str, Any]] = []
    for name, tasks, runs in groups:
        entries: list[dict[str, Any]] = []
        for fitted in runs:
            key = f"{len(told)}/{len(entries)}"
            tensors |= {f"{key}/state/{part}": value.contiguous() for part, value in fitted.state.items()}
            if fitted.fixed.scale is not None:
                tensors |= {f"{key}/mean": torch.from_numpy(fitted.fixed.scale[0])}
                tensors |= {f"{key}/sd": torch.from_numpy(fitted.fixed.scale[1])}
            entry = {"seed": fitted.run.seed, "fold": fitted.run.fold, "best_epoch": fitted.best_epoch}
            entries.append({**entry, "values": fitted.fixed.values, "cuts": fitted.fixed.cuts})
        told.append({"name": name, "tasks": [task.to_dict() for task in tasks], "runs": entries})
    flat = [task.to_dict() for _, tasks, _ in groups for task in tasks]
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / STATE_FILE, metadata={"format": "pt"})
        write_json(temporary / CONFIG_FILE, {**info, "tasks": flat, "groups": told})
        write_text(temporary / CARD_FILE, card)


def load_heads(folder: PathLike, device: str | torch.device = "cpu") -> TrainedHeads:
    """The heads in a folder of `eosin mil train`, or in its heads/. Raises DataError or WeightsError, one line."""
    root = Path(folder)
    root = root if (root / STATE_FILE).is_file() else root / "heads"
    if not (root / STATE_FILE).is_file():
        raise DataError(f"{folder} holds no trained heads; give the folder that `eosin mil train -o` wrote")
    place = torch.device(device)
    try:
        config = json.loads((root / CONFIG_FILE).read_text())
        tensors = load_file(root / STATE_FILE)
        groups = {
            own["name"]: [
                _member(config, own, entry, f"{number}/{run}", tensors, place) for run, entry in enumerate(own["runs"])
            ]
            for number, own in enumerate(config["groups"])
        }
    except EosinError:
        raise
    except Exception as error:
        # A damaged file fails in many ways (JSON, safetensors, shapes); all mean the same to its owner.
        raise WeightsError(f"{root} is not a folder of trained heads, or is damaged: {error}") from error
    info = {key: value for key, value in config.items() if key != "groups"}
    return TrainedHeads(groups, {**info, "head": config.get("kind")}, place)


def _member(
    config: dict[str, Any],
    group: dict[str, Any],
    entry: dict[str, Any],
    key: str,
    tensors: dict[str, Tensor],
    device: torch.device,
) -> _Member:
    head = build_head(config["kind"], config["width"], group["tasks"], **config.get("settings", {}))
    state = f"{key}/state/"
    head.load_state_dict({name[len(state) :]: value for name, value in tensors.items() if name.startswith(state)})
    scale = None
    if f"{key}/mean" in tensors:
        scale = tensors[f"{key}/mean"].numpy(), tensors[f"{key}/sd"].numpy()
    values = {name: (float(mean), float(sd)) for name, (mean, sd) in entry["values"].items()}
    return _Member(head.to(device).eval(), Fixed(scale, values, {}, {}))
