"""Segmentation: a decoder on patch tokens says the class of each pixel. Dice without background.

| score | metrics |
|---|---|
| image | dice, iou: pixels of all images pooled, mean over classes |
|       | dice_per_image: mean over the classes that are in an image, then over images |
| window | dice_per_window: dice_per_image of windows, as eva 0.4.5 reports it; dice, iou: pooled over windows |
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from eosin.errors import DataError
from eosin.evaluation.folds import folds_of, split_name
from eosin.evaluation.kinds.kind import Asked, Kind
from eosin.evaluation.kinds.segmentation_pictures import chosen_images, write_label_maps
from eosin.evaluation.outcome import Floats, Ints, Measure, Outcome
from eosin.evaluation.probes.dice import class_dice, class_iou, counts_of, picture_dice, pooled
from eosin.evaluation.probes.segmentation import Segmented, segment
from eosin.evaluation.probes.segmentation_decoders import WITH_PIXELS, WITHOUT_TOKENS
from eosin.evaluation.probes.segmentation_fit import Dense, SegmentationSettings
from eosin.evaluation.probes.segmentation_windows import (
    Layout,
    WindowImages,
    Windows,
    checked_mask,
    lay_out,
    sizes_of,
    window_mask,
)
from eosin.evaluation.protocols import Protocol
from eosin.evaluation.tasks import Task
from eosin.evaluation.tasks.masks import Masks
from eosin.evaluation.tasks.public.bcss import EVA_VALUES
from eosin.features.patch_tokens import kept_bytes, kept_patch_tokens
from eosin.provenance import hash_of
from eosin.randomness import Words

_INPUT_PX = 96  # windows of what has no input size of its own, and sees single pixels


class _Inputs(NamedTuple):
    fit: Dense
    dense: Dense
    masks: Masks
    sizes: Ints
    how: SegmentationSettings
    pictures: Path


class Segmentation(Kind):
    """Decoders on patch tokens, scored by Dice."""

    name = "segmentation"

    def check(self, task: Task, protocol: Protocol) -> None:
        folds_of(task, protocol)
        if protocol.probe != "segmentation":
            raise DataError(f"task {task.name}: protocol {protocol.id} does not judge segmentation")
        if task.images is None or not isinstance(task.targets, Masks):
            raise DataError(f"task {task.name}: segmentation needs images and masks")
        if len(task.classes) < 2:
            raise DataError(f"task {task.name}: {task.source} has one class only; two are needed")

    def inputs(self, asked: Asked) -> _Inputs:
        if asked.encoder is None or asked.task.images is None:
            raise DataError(f"task {asked.task.name}: segmentation needs a model; kept features have no places")
        how = _settings(asked)
        masks = _masks(asked.task, how)
        sizes = sizes_of(asked.task.images)
        size_px = asked.encoder.input_size or _INPUT_PX
        side_px = how.side_px or round(size_px * (how.mpp / how.native_mpp if how.mpp and how.native_mpp else 1.0))

        def made(layout: Layout, only: Ints | None = None) -> Dense:
            words = Words(asked.protocol.seed, "views", asked.task.name)
            windows = lay_out(sizes, layout, size_px, side_px, only=only, views=how.views, words=words)
            return _dense(asked, windows, masks, sizes, how)

        dense = made(how.layout)
        fit = dense
        if how.fit_layout is not None:
            split = asked.task.split
            fit = made(how.fit_layout, None if split is None else np.flatnonzero(split == "train"))
        kept = asked.store.folder
        root = kept.parent.parent if kept.parent.name == "cache" else kept
        pictures = root / "segmentation" / asked.task.name / asked.protocol.id / asked.encoder.model_hash
        return _Inputs(fit, dense, masks, sizes, how, pictures)

    def judge(self, task: Task, inputs: _Inputs, protocol: Protocol, device: torch.device) -> Outcome:
        started = time.perf_counter()
        folds = folds_of(task, protocol)
        shown = chosen_images(np.concatenate([fold.test for fold in folds]))
        found = []
        for number, fold in enumerate(folds):
            try:
                found.append(
                    segment(
                        inputs.fit,
                        inputs.dense,
                        fold.train,
                        fold.test,
                        len(task.classes),
                        lambda row: checked_mask(task.name, inputs.masks, row, inputs.sizes[row], str(task.ids[row])),
                        inner=fold.inner,
                        watch=fold.watch,
                        how=inputs.how,
                        shown=shown,
                        seed=protocol.seed,
                        fold=number,
                        device=str(device),
                    )
                )
            except DataError as error:
                raise DataError(f"task {task.name}: {error}") from error
        write_label_maps(inputs.pictures, task, {row: maps for part in found for row, maps in part.maps.items()})
        choices = [part.choices for part in found]
        outcome = _outcome(task, found, inputs.how, split_name(task, protocol, len(folds)), choices)
        return replace(outcome, seconds=time.perf_counter() - started)

    def describe(self, task: Task, protocol: Protocol, outcome: Outcome) -> dict[str, Any]:
        tables = outcome.tables["confusion"]  # [R, C + 1, C]
        counts = counts_of(tables)
        dice, iou = _mean(class_dice(counts)), _mean(class_iou(counts))
        return {
            "chance": None,
            "best_constant": _best_constant(counts[0, 2].astype(np.float64)),
            "per_class": {name: _number(value) for name, value in zip(task.classes, dice, strict=True)},
            "per_class_iou": {name: _number(value) for name, value in zip(task.classes, iou, strict=True)},
            "confusion": np.rint(tables[:, :-1].mean(0)).astype(int).tolist(),
        }

    def columns(self, task: Task, outcome: Outcome) -> dict[str, list[Any]]:
        return {"scores": outcome.tables["picture_dice"].tolist()}


def _settings(asked: Asked) -> SegmentationSettings:
    """The protocol's settings; encoders that know colours alone have the one decoder that needs no tokens."""
    assert asked.encoder is not None
    how = SegmentationSettings(**asked.protocol.settings_for(asked.task.name))
    if asked.encoder.places == "pixels":
        return replace(how, decoder=("colour",))
    return how


def _masks(task: Task, how: SegmentationSettings) -> Masks:
    assert isinstance(task.targets, Masks)
    if how.bcss_classes == "eva" and "eva.bcss_classes" in task.switches:
        return Masks(task.targets.paths, task.targets.classes, task.targets.read, {**EVA_VALUES, 0: 0})
    return task.targets


def _dense(asked: Asked, windows: Windows, masks: Masks, sizes: Ints, how: SegmentationSettings) -> Dense:
    """What the decoders read, made or found in the store: masks first, since they are quick and may be wrong."""
    encoder, task, store = asked.encoder, asked.task, asked.store
    assert encoder is not None
    assert task.images is not None
    if not len(windows):
        raise DataError(f"task {task.name}: no image is as large as a window of {windows.size_px} px")
    side = windows.size_px
    images = WindowImages(task.images, windows)
    content = hash_of([asked.key, windows.hash])
    key = hash_of([masks.content_hash(), sizes.tolist(), windows.hash, "masks"])
    kept = kept_bytes(store, key, (len(windows), side, side), partial(_window_masks, task, masks, sizes, windows))
    pixels = tokens = None
    if any(name in WITH_PIXELS for name in how.decoder):
        rows = partial(map, images.__getitem__, range(len(windows)))
        pixels = kept_bytes(store, hash_of([content, "pixels"]), (len(windows), side, side, 3), rows)
    if any(name not in WITHOUT_TOKENS for name in how.decoder):
        tokens = kept_patch_tokens(
            store,
            encoder,
            images,
            content,
            norm=how.norm,
            device=asked.device,
            batch=asked.batch,
            workers=asked.workers,
            title=f"{asked.model}, {task.name}",
        )
    mean, std = (values.flatten().cpu().numpy() for values in (encoder.mean, encoder.std))
    return Dense(windows, tokens, pixels, kept, mean, std)


def _window_masks(task: Task, masks: Masks, sizes: Ints, windows: Windows) -> Any:
    """Masks of windows in order; each mask is read once."""
    last, mask = -1, None
    for row, number in enumerate(windows.image.tolist()):
        if number != last:
            last, mask = number, checked_mask(task.name, masks, number, sizes[number], str(task.ids[number]))
        assert mask is not None
        yield window_mask(mask, windows, row)


def _outcome(
    task: Task, found: list[Segmented], how: SegmentationSettings, split: str, choices: list[dict[str, Any]]
) -> Outcome:
    unit_image = np.concatenate([part.image for part in found])
    tables = np.concatenate([part.tables for part in found], axis=1)  # [R, U, C + 1, C]
    rows, place = np.unique(unit_image, return_inverse=True)
    runs, n = len(tables), len(rows)
    summed = np.zeros((runs, n, *tables.shape[2:]), dtype=np.int64)
    for unit, image in enumerate(place.tolist()):
        summed[:, image] += tables[:, unit]
    groups = None if task.groups is None else task.groups[rows]
    counts = counts_of(summed)  # [R, n, 3, C]
    foreground = counts[..., 1:].reshape(runs, n, -1).astype(np.float64)

    def whole(metric: str, by_run: Floats) -> Measure:
        return Measure(metric, float(np.mean(by_run)), by_run, foreground, groups=groups)

    of_units = picture_dice(counts_of(tables))  # [R, U]
    there = ~np.isnan(of_units[0])
    each = np.zeros((runs, n, 2))
    for unit in np.flatnonzero(there).tolist():
        each[:, place[unit]] += np.stack([of_units[:, unit], np.ones(runs)], axis=1)
    by_run = each[..., 0].sum(1) / each[..., 1].sum(1)
    name = "dice_per_image" if how.score == "image" else "dice_per_window"
    mean = Measure(name, float(by_run.mean()), by_run, each.mean(0, keepdims=True), groups=groups)
    total = counts.sum(1)
    pooled_ones = whole("dice", pooled(class_dice(total))), whole("iou", pooled(class_iou(total)))
    measures = (pooled_ones[0], mean, pooled_ones[1]) if how.score == "image" else (mean, *pooled_ones)
    kept = {
        "confusion": summed.sum(1),
        "picture_dice": class_dice(counts).mean(0),
    }
    return Outcome(rows, split, measures, kept, choices, 0.0)


def _best_constant(true: Floats) -> dict[str, float]:
    """Pooled scores of the label map that says one class everywhere, the best of them; `true`: pixels of each class."""
    foreground, total = true[1:], true.sum()
    there = max(int((foreground > 0).sum()), 1)
    return {
        "dice": float((2.0 * foreground / (total + foreground)).max() / there),
        "iou": float((foreground / total).max() / there),
    }


def _mean(values: npt.NDArray[np.float64]) -> list[float]:
    """Over runs, [R, C] -> C numbers; NaN where a class is nowhere."""
    return values.mean(axis=0).tolist()


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
