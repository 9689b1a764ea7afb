"""Linear probe: one linear layer on frozen features, several runs and settings trained as one batched problem.

Two ways, both data of a protocol. With `checkpoint` "last", every setting of the grid is trained on the inner parts
of train for a fixed number of steps, the best on their held-out parts is chosen, and `runs` heads are trained afresh
with it on all of train. With "best" (what eva does) there is one setting, each run keeps the weights of the epoch
that scored best on the watched samples, and stops when that has not risen for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from eosin.errors import DataError
from eosin.evaluation.probes.decisions import Scorer, decide, probabilities
from eosin.evaluation.probes.linear_fit import Grid, LinearSettings, as_tensor, train_fixed, train_watched
from eosin.evaluation.probes.probe import Examples, Floats, Labels, Prediction
from eosin.evaluation.probes.simpleshot import draw_shots
from eosin.randomness import Words


class Scale(NamedTuple):
    """Mean and sd of features, [D] each."""

    mean: Floats
    sd: Floats

    def __call__(self, x: Floats) -> Floats:
        """Features [M, D] in these units."""
        return (x - self.mean) / self.sd


def linear(
    train: Examples,
    test_x: Floats,
    classes: int,
    *,
    inner: Sequence[tuple[Examples, Examples]] = (),
    watch: Examples | None = None,
    shots: int | None = None,
    seed: int = 0,
    fold: int = 0,
    device: str = "cpu",
    **settings: Any,
) -> Prediction:
    """Predictions of `runs` heads for `test_x` [M, D]; scores are their mean probabilities. `settings`: of
    LinearSettings.

    `watch`: what best checkpoints are chosen on. `shots`: each run trains on so many samples a class, drawn anew.
    Deterministic on a CPU. Raises DataError for features that are not finite and for what does not fit together.
    """
    how = LinearSettings(**settings)
    for x in (train.x, test_x, *([] if watch is None else [watch.x])):
        if not np.isfinite(x).all():
            raise DataError("the linear probe was given features that are not finite (NaN or infinite)")
    grid = list(product(how.lr, how.weight_decay))
    if how.checkpoint == "best" and (watch is None or len(grid) > 1):
        raise DataError("a best checkpoint needs watched samples, and a grid of one setting")
    scale = _scale_of(train.x) if how.standardise else None
    train, test_x = _scaled(train, scale), test_x if scale is None else scale(test_x)
    parts = [train] * how.runs if shots is None else _few(train, classes, shots, how, seed, fold)
    if how.checkpoint == "best" and watch is not None:
        found = train_watched(parts, _scaled(watch, scale), classes, how, grid, (seed, "linear", fold), device)
        choices: dict[str, Any] = {
            "best_step": found.best_step[:, 0].tolist(),
            "last_step": found.last_step[:, 0].tolist(),
            "watched_score": found.best[:, 0].tolist(),
        }
        return _predict(found.weight[:, 0], found.bias[:, 0], test_x, how, choices)
    if shots is not None:
        # Settings are chosen on draws as small as those that are judged.
        inner = [(few, held_out) for fit, held_out in inner for few in _few(fit, classes, shots, how, seed, fold)]
    chosen, choices = _choose(inner, classes, how, grid, seed, fold, device)
    heads = train_fixed(parts, classes, how, [chosen], (seed, "linear", fold, "final"), device)
    return _predict(heads.weight[:, 0], heads.bias[:, 0], test_x, how, choices)


def _choose(
    inner: Sequence[tuple[Examples, Examples]],
    classes: int,
    how: LinearSettings,
    grid: Grid,
    seed: int,
    fold: int,
    device: str,
) -> tuple[tuple[float, float], dict[str, Any]]:
    """The setting of the grid that is best on the held-out parts of `inner`, taken together; the first of equals."""
    if len(grid) == 1:
        return grid[0], {"lr": grid[0][0], "weight_decay": grid[0][1], "inner_score": None}
    if not inner:
        raise DataError("a grid of settings needs inner parts to choose on")
    scales = [_scale_of(part.x) if how.standardise else None for part, _ in inner]
    parts = [_scaled(part, scale) for (part, _), scale in zip(inner, scales, strict=True)]
    heads = train_fixed(parts, classes, how, grid, (seed, "linear", fold, "inner"), device)
    predicted = []
    for number, ((_, held_out), scale) in enumerate(zip(inner, scales, strict=True)):
        x = as_tensor(_scaled(held_out, scale).x, device)
        logits = torch.matmul(x, heads.weight[number].transpose(1, 2)) + heads.bias[number].unsqueeze(1)  # [G, M, K]
        predicted.append(decide(logits, how.cut))
    labels = torch.from_numpy(np.concatenate([held_out.y for _, held_out in inner])).to(device)
    score = Scorer(labels, classes, how.monitor_for(classes))(torch.cat(predicted, dim=1))  # [G]
    best = int(score.argmax())
    lr, weight_decay = grid[best]
    return grid[best], {"lr": lr, "weight_decay": weight_decay, "inner_score": float(score[best])}


def _few(train: Examples, classes: int, shots: int, how: LinearSettings, seed: int, fold: int) -> list[Examples]:
    """A draw of `shots` samples a class for each run."""
    picks = draw_shots(train.y, classes, shots, how.runs, Words(seed, "linear", "shots", fold)).reshape(how.runs, -1)
    if how.shots_of == "eva":
        picks = eva_shots(train.y, shots, how.runs)
    return [Examples(train.x[rows], train.y[rows]) for rows in picks]


def eva_shots(labels: Labels, shots: int, runs: int) -> Labels:
    """The samples [runs, classes x shots] that eva's balanced sampler draws: one NumPy generator, seed 42, run after
    run, classes in the order in which they first occur. NumPy does not promise that its draws never change.
    """
    generator = np.random.default_rng(42)
    found = np.unique(labels, return_index=True)
    members = [np.flatnonzero(labels == label) for label in found[0][np.argsort(found[1])]]
    drawn = []
    for _ in range(runs):
        rows = [row for inside in members for row in generator.choice(inside, size=shots, replace=False).tolist()]
        generator.shuffle(rows)
        drawn.append(rows)
    return np.asarray(drawn, dtype=np.int64)


def _scale_of(x: Floats) -> Scale:
    mean, sd = x.mean(axis=0, dtype=np.float64), x.std(axis=0, dtype=np.float64)
    # What does not vary is put to 0, whatever rounding made of it.
    sd = np.where(sd > 1e-7 * (1.0 + np.abs(mean)), sd, np.inf)
    return Scale(mean.astype(np.float32), sd.astype(np.float32))


def _scaled(part: Examples, scale: Scale | None) -> Examples:
    return part if scale is None else Examples(scale(part.x), part.y)


def _predict(weight: Tensor, bias: Tensor, test_x: Floats, how: LinearSettings, choices: dict[str, Any]) -> Prediction:
    """What heads [R, K, D], [R, K] say about `test_x` [M, D]."""
    x = as_tensor(test_x, str(weight.device))
    logits = torch.matmul(x, weight.transpose(1, 2)) + bias.unsqueeze(1)  # [R, M, K]
    scores = probabilities(logits).mean(dim=0)
    return Prediction(scores.cpu().numpy(), decide(logits, how.cut).cpu().numpy(), choices)
