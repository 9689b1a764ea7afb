"""Segmentation probe: a decoder from patch tokens to the class of each pixel, chosen and judged without looking ahead.

With `checkpoint` "last" every decoder, learning rate and number of steps of the grid is tried on inner parts of train,
the best by pooled Dice is taken, and `runs` decoders are trained afresh with it on all of train. With "best" (what eva
does) there is one setting, and each run keeps the weights of the epoch that scored best on the watched images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from eosin.errors import DataError
from eosin.evaluation.probes.dice import class_dice, confusion, counts_of, pooled
from eosin.evaluation.probes.segmentation_decoders import WITHOUT_TOKENS, DecoderName, StackedDecoder
from eosin.evaluation.probes.segmentation_fit import (
    Dense,
    Feed,
    Fit,
    SegmentationSettings,
    joined,
    look,
    scale_of,
    train_fixed,
    train_watched,
)
from eosin.evaluation.probes.segmentation_windows import Windows
from eosin.evaluation.tasks.masks import IGNORE

Ints = npt.NDArray[np.int64]
Picture = npt.NDArray[np.uint8]
_AT_ONCE = 8


class Segmented(NamedTuple):
    """What `runs` decoders said. `image` [U]: number of the image of each scored unit (an image, or a window of one);
    `tables` int64 [R, U, C + 1, C]: its confusion in each run; `maps`: label maps of the first run, by image, of those
    that were asked for; `choices`: what the probe chose.
    """

    image: Ints
    tables: Ints
    maps: dict[int, Picture]
    choices: dict[str, Any]


def segment(
    fit_on: Dense,
    dense: Dense,
    train: Ints,
    test: Ints,
    classes: int,
    truth: Callable[[int], Picture],
    *,
    inner: Sequence[tuple[Ints, Ints]] = (),
    watch: Ints | None = None,
    how: SegmentationSettings,
    shown: Sequence[int] = (),
    seed: int = 0,
    fold: int = 0,
    device: str = "cpu",
) -> Segmented:
    """Train on images `train`, score images `test` (numbers in the task); `inner`, `watch`: images too.

    `fit_on`: the windows that are learned from; `dense`: those that are scored. `truth` gives the mask of an image at
    full size. `shown`: images whose label maps are kept. Deterministic on a CPU. Raises DataError where the training
    part has one class only.
    """
    rows = fit_on.windows.of(train)
    _refuse_one_class(fit_on, rows, classes)
    key = (seed, "segmentation", fold)
    if how.checkpoint == "best":
        if watch is None or len(list(product(how.decoder, how.lr, how.steps))) > 1:
            raise DataError("a best checkpoint needs watched images, and a grid of one setting")
        name = how.decoder[0]
        feed = _feed(name, fit_on, rows, how, device)
        watched = Feed(name, dense, feed.scale, how.every, device), dense.windows.of(watch)
        fit = train_watched(feed, rows, watched, classes, how, key)
        chosen: dict[str, Any] = {"best_step": fit.best_step, "last_step": fit.last_step, "watched_score": fit.score}
    else:
        name, lr, steps, score = _choose(fit_on, dense, inner, train, classes, how, key, device)
        feed = _feed(name, fit_on, rows, how, device)
        fit = _runs(feed, rows, classes, how, lr, steps, (*key, "final"))
        chosen = {"decoder": name, "lr": lr, "steps": steps, "inner_score": score}
    judged = Feed(name, dense, feed.scale, 1, device)
    image, tables, maps = _score(fit.decoders, judged, test, classes, truth, how, set(shown))
    return Segmented(image, tables, maps, chosen)


def _runs(
    feed: Feed, rows: Ints, classes: int, how: SegmentationSettings, lr: float, steps: int, key: tuple[int | str, ...]
) -> Fit:
    """`how.runs` decoders, each with its own start and order of windows."""
    together = 1 if feed.name == "image" else how.runs
    fits = []
    for first in range(0, how.runs, together):
        count = min(together, how.runs - first)
        fits.append(train_fixed(feed, [rows] * count, classes, how, [lr] * count, steps, (*key, first)))
    return joined(fits)


def _choose(
    fit_on: Dense,
    dense: Dense,
    inner: Sequence[tuple[Ints, Ints]],
    train: Ints,
    classes: int,
    how: SegmentationSettings,
    key: tuple[int | str, ...],
    device: str,
) -> tuple[DecoderName, float, int, float | None]:
    """Decoder, learning rate and steps with the best pooled Dice on the held-out parts of `inner`, taken together."""
    grid = list(product(how.decoder, how.steps, how.lr))
    if len(grid) == 1:
        return grid[0][0], grid[0][2], grid[0][1], None
    if not inner:
        raise DataError("a grid of settings needs inner parts to choose on")
    tables: dict[tuple[DecoderName, int, float], Ints] = {}
    for part, (fit, held_out) in enumerate(inner[: how.inner_parts]):
        rows, judged = fit_on.windows.of(np.intersect1d(fit, train)), dense.windows.of(held_out)
        for name in how.decoder:
            feed = _feed(name, fit_on, rows, how, device)
            for steps in how.steps:
                # The learning rates share windows, and are trained together where memory allows.
                for some in [[lr] for lr in how.lr] if name == "image" else [list(how.lr)]:
                    heads = train_fixed(feed, [rows], classes, how, some, steps, (*key, "inner", part))
                    reader = Feed(name, dense, feed.scale, how.every, device)
                    for lr, decoder in zip(some, heads.decoders, strict=True):
                        found = look(decoder, reader, judged, classes, how)[0].sum(0)
                        tables[name, steps, lr] = tables.get((name, steps, lr), 0) + found
    scores = [float(pooled(class_dice(counts_of(tables[setting])))) for setting in grid]
    best = int(np.nanargmax(scores)) if np.isfinite(scores).any() else 0
    name, steps, lr = grid[best]
    return name, lr, steps, scores[best]


def _feed(name: DecoderName, dense: Dense, rows: Ints, how: SegmentationSettings, device: str) -> Feed:
    scale = None
    if how.standardise and name not in WITHOUT_TOKENS and dense.tokens is not None:
        scale = scale_of(dense.tokens, rows, device)
    return Feed(name, dense, scale, how.every, device)


@torch.no_grad()
def _score(
    decoders: list[StackedDecoder],
    feed: Feed,
    test: Ints,
    classes: int,
    truth: Callable[[int], Picture],
    how: SegmentationSettings,
    shown: set[int],
) -> tuple[Ints, Ints, dict[int, Picture]]:
    """Confusions of every run, image by image (or window by window), and label maps of the first run."""
    windows = feed.dense.windows
    units: list[int] = []
    tables: list[Ints] = []
    maps: dict[int, Picture] = {}
    for number in test.tolist():
        rows = windows.of(np.array([number]))
        mask = truth(number) if how.score == "image" or number in shown else None
        by_run = []
        for run, decoder in enumerate(decoders):
            keep = mask is not None and (how.score == "image" or run == 0)
            label_map = np.full(mask.shape, IGNORE, np.uint8) if mask is not None and keep else None
            by_window = _predict(decoder, feed, rows, label_map, classes, how)
            if label_map is not None and run == 0 and number in shown:
                maps[number] = label_map
            if how.score == "image":
                assert mask is not None
                assert label_map is not None
                by_run.append(confusion(label_map, mask, classes, how.ignored)[None])
            else:
                by_run.append(by_window)
        tables.append(np.stack(by_run))  # [R, units of this image, C + 1, C]
        units += [number] * tables[-1].shape[1]
    return np.array(units, dtype=np.int64), np.concatenate(tables, axis=1), maps


def _predict(
    decoder: StackedDecoder,
    feed: Feed,
    rows: Ints,
    label_map: Picture | None,
    classes: int,
    how: SegmentationSettings,
) -> Ints:
    """Confusion of each window at its own size [windows, C + 1, C]; what they own is painted into `label_map`."""
    tables = []
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        logits = feed.logits(decoder, some)[:, 0]  # [B, C, S, S]
        if how.score == "window":
            masks = feed.masks(some).cpu().numpy()
            for predicted, mask in zip(logits.argmax(1).cpu().numpy(), masks, strict=True):
                tables.append(confusion(predicted, mask, classes, how.ignored))
        if label_map is not None:
            for row, scores in zip(some.tolist(), logits, strict=True):
                _paint(label_map, feed.dense.windows, row, scores)
    return np.stack(tables) if tables else np.empty((0, classes + 1, classes), dtype=np.int64)


def _paint(label_map: Picture, windows: Windows, row: int, scores: torch.Tensor) -> None:
    """The classes of what a window owns, from its scores [C, S, S] brought back to the image's px."""
    top, left, height, width = windows.place(row)
    if scores.shape[1:] != (height, width):
        scores = F.interpolate(scores[None], (height, width), mode="bilinear", align_corners=False)[0]
    first, last, begin, end = windows.owned[row].tolist()
    part = scores[:, first - top : last - top, begin - left : end - left].argmax(0)
    label_map[first:last, begin:end] = part.to(torch.uint8).cpu().numpy()


def _refuse_one_class(dense: Dense, rows: Ints, classes: int) -> None:
    seen = np.zeros(256, dtype=bool)
    for row in rows.tolist():
        seen[np.unique(dense.masks[row])] = True
        if seen[:classes].sum() > 1:
            return
    raise DataError("the masks of a training part hold one class only; two are needed")
