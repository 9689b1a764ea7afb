"""The stacked linear probe against one head at a time: torch's own loss, autograd, optimiser and scheduler."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eosin.errors import DataError
from eosin.evaluation.probes import Examples, linear
from eosin.evaluation.probes.linear import eva_shots
from eosin.evaluation.probes.linear_fit import LinearSettings, new_heads, train_fixed, train_watched
from eosin.evaluation.probes.order import even_batches, shuffled_epochs
from eosin.evaluation.probes.schedules import Per, Schedule, lr_factors
from eosin.evaluation.probes.stacked import Optimizer, StackedLinear
from eosin.evaluation.protocols import PROTOCOLS
from eosin.evaluation.statistics import balanced_accuracy
from eosin.randomness import Words

WIDTH, STEPS = 24, 300


def examples(seed: int, count: int = 300, classes: int = 4, shift: float = 0.6) -> Examples:
    """Gaussian features around class centres that all seeds share."""
    centres = np.random.default_rng(99).normal(size=(classes, WIDTH)) * shift
    drawn = np.random.default_rng(seed)
    labels = drawn.integers(0, classes, count)
    return Examples((drawn.normal(size=(count, WIDTH)) + centres[labels]).astype(np.float32), labels)


def scheduler_of(schedule: str, optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if schedule == "third-first":
        return torch.optim.lr_scheduler.ConstantLR(optimizer)
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def plain(
    part: Examples, weight: Tensor, bias: Tensor, rows: Iterable[Tensor], lr: float, decay: float, how: LinearSettings
) -> Iterator[nn.Linear]:
    """One head after each of its steps, in the precision of its weights."""
    head = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    x, y = torch.from_numpy(part.x).to(weight.dtype), torch.from_numpy(part.y)
    optimizer: torch.optim.Optimizer
    if how.optimizer == "adamw":
        optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=decay)
    else:
        optimizer = torch.optim.SGD(head.parameters(), lr=lr, momentum=how.momentum, weight_decay=decay)
    scheduler = scheduler_of(how.schedule, optimizer, how.steps)
    per_epoch = math.ceil(len(part.y) / how.batch)
    for step, batch in enumerate(rows, 1):
        logits = head(x[batch])
        if weight.shape[0] == 1:
            loss = nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y[batch].to(weight.dtype))
        else:
            loss = nn.functional.cross_entropy(logits, y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if how.per == "step" or step % per_epoch == 0:
            scheduler.step()
        yield head


def last(heads: Iterator[nn.Linear]) -> tuple[Tensor, Tensor]:
    """Weight and bias when all steps are done."""
    *_, head = heads
    return head.weight.detach(), head.bias.detach()


@pytest.mark.parametrize(
    ("optimizer", "schedule", "per", "classes"),
    [
        ("adamw", "third-first", "epoch", 4),
        ("adamw", "cosine", "step", 2),
        ("adamw", "constant", "step", 4),
        ("sgd", "cosine", "epoch", 4),
        ("sgd", "constant", "step", 2),
    ],
)
def test_stacked_heads_are_what_each_would_be_alone(
    schedule: Schedule, per: Per, optimizer: Optimizer, classes: int
) -> None:
    """Two runs with own samples x a grid of two, 300 steps, within 1e-5."""
    how = LinearSettings(batch=64, steps=STEPS, optimizer=optimizer, schedule=schedule, per=per, loss="auto")
    grid = [(1e-3, 0.1), (3e-2, 0.0)]
    parts = [examples(seed, 300, classes) for seed in range(2)]
    key = (7, "test")
    start = new_heads(parts, classes, how, grid, key, "cpu")
    heads = train_fixed(parts, classes, how, grid, key, "cpu")
    orders = [Words(7, "test", "order", number) for number in range(2)]
    batches = list(islice(even_batches([300] * 2, orders, 64), STEPS))
    for run, part in enumerate(parts):
        for place, (lr, decay) in enumerate(grid):
            rows = [batch[run] for batch in batches]
            weight, bias = last(plain(part, start.weight[run, place], start.bias[run, place], rows, lr, decay, how))
            assert float((weight - heads.weight[run, place]).abs().max()) < 1e-5
            assert float((bias - heads.bias[run, place]).abs().max()) < 1e-5
            assert float((weight - start.weight[run, place]).abs().max()) > 1e-3


def test_one_setting_and_a_grid_agree_with_plain_loop_in_double_precision() -> None:
    """The arithmetic, apart from rounding: 1e-12 after 300 steps, parts of unequal size."""
    how = LinearSettings(batch=32, steps=STEPS, schedule="cosine")
    parts = [examples(0, 130), examples(1, 170)]
    rows = list(islice(even_batches([130, 170], [Words(1, "a"), Words(1, "b")], 32), STEPS))
    factors = lr_factors("cosine", "step", STEPS, 5).tolist()
    for grid in ([(1e-2, 0.05)], [(1e-2, 0.05), (1e-3, 0.0)]):
        drawn = torch.from_numpy(Words(3, "w").between(-0.2, 0.2, 2, len(grid), 4, WIDTH + 1))
        heads = StackedLinear(
            [torch.from_numpy(part.x).double() for part in parts],
            [nn.functional.one_hot(torch.from_numpy(part.y)).double() for part in parts],
            drawn[..., :-1],
            drawn[..., -1],
            lr=[lr for lr, _ in grid],
            weight_decay=[decay for _, decay in grid],
        )
        for factor, batch in zip(factors, rows, strict=True):
            heads.step(batch, factor)
        for run, part in enumerate(parts):
            mine = [batch[run] for batch in rows]
            weight, _ = last(plain(part, drawn[run, 0, :, :-1], drawn[run, 0, :, -1], mine, *grid[0], how))
            torch.testing.assert_close(weight, heads.weight[run, 0], atol=1e-12, rtol=0)


def watched_alone(
    part: Examples, watched: Examples, start: StackedLinear, run: int, orders: list[Tensor], how: LinearSettings
) -> tuple[Tensor, int, int, float]:
    """One head with best checkpoint and early stopping, written as a loop: weight, best step, last step, best score."""
    per_epoch = math.ceil(len(part.y) / how.batch)
    best, bar, waited, kept, best_step, done = -1.0, -1.0, 0, torch.empty(0), 0, 0
    patience = how.patience_for(len(part.y))
    rows = [batch for order in orders for batch in order.split(how.batch)][: how.steps]
    heads = plain(part, start.weight[run, 0], start.bias[run, 0], rows, how.lr[0], how.weight_decay[0], how)
    for step, head in enumerate(heads, 1):
        if step % (per_epoch * how.check_every):
            continue
        with torch.no_grad():
            predicted = head(torch.from_numpy(watched.x)).argmax(1).numpy()
        score = balanced_accuracy(predicted == watched.y, watched.y)
        done = step
        if score > best:
            best, best_step, kept = score, done, head.weight.data.clone()
        if score - how.min_delta > bar:
            bar, waited = score, 0
        else:
            waited += 1
            if patience is not None and waited >= patience:
                break
    return kept, best_step, done, best


@pytest.mark.parametrize(
    "more",
    [
        {"patience": 4},
        {"patience_share": 0.2, "check_every": 2},
        {"patience": 3, "min_delta": 0.02},
        {"steps": 58},
    ],
)
def test_checkpoints_and_early_stops_are_each_heads_own(more: dict[str, Any]) -> None:
    how = LinearSettings(**{"lr": [3e-3], "batch": 64, "steps": 125, "schedule": "third-first", "per": "epoch", **more})
    parts = [examples(seed, 150, shift=0.3) for seed in range(4)]
    watched = examples(50, 80, shift=0.3)
    start = new_heads(parts, 4, how, [(3e-3, 0.01)], (5, "w"), "cpu")
    watch = train_watched(parts, watched, 4, how, [(3e-3, 0.01)], (5, "w"), "cpu")
    orders = list(islice(shuffled_epochs([150] * 4, [Words(5, "w", "order", n) for n in range(4)]), 60))
    stops = set()
    for run, part in enumerate(parts):
        mine = [order[run] for order in orders]
        kept, best_step, last_step, best = watched_alone(part, watched, start, run, mine, how)
        assert (int(watch.best_step[run, 0]), int(watch.last_step[run, 0])) == (best_step, last_step)
        assert float(watch.best[run, 0]) == pytest.approx(best, abs=1e-6)
        torch.testing.assert_close(watch.weight[run, 0], kept, atol=1e-5, rtol=0)
        stops.add(last_step)
    if "patience" in more:
        assert len(stops) > 1, "the runs should stop at different times, or nothing is tested"


def test_less_than_an_epoch_gives_the_last_weights() -> None:
    how = LinearSettings(lr=[1e-2], batch=64, steps=3)
    part = examples(0, 300)
    watch = train_watched([part], examples(1), 4, how, [(1e-2, 0.01)], (5, "w"), "cpu")
    assert watch.best_step.tolist() == [[3]]
    start = new_heads([part], 4, how, [(1e-2, 0.01)], (5, "w"), "cpu")
    assert float((watch.weight - start.weight).abs().max()) == pytest.approx(0.03, rel=0.1)


def test_every_sample_once_an_epoch_and_every_run_its_own_order() -> None:
    orders = list(islice(shuffled_epochs([100, 100], [Words(0, "a"), Words(0, "b")]), 500))
    assert all((order.sort(dim=1).values == torch.arange(100)).all() for order in orders)
    assert (orders[0][0] != orders[0][1]).any()
    assert (orders[0][0] != orders[1][0]).any()
    # Each sample is as often in each place: 500 epochs x 2 runs, mean 10, chi-square of 99 degrees for each place.
    seen = torch.zeros(100, 100)
    for order in orders:
        for row in order:
            seen[torch.arange(100), row] += 1
    chi = ((seen - 10.0) ** 2 / 10.0).sum(dim=1)
    assert float(chi.mean()) == pytest.approx(99.0, abs=10.0)
    even = torch.cat(list(islice(even_batches([100, 90], [Words(0, "a"), Words(0, "b")], 64), 225)), dim=1)
    assert (torch.bincount(even[0]) == 144).all()
    assert (torch.bincount(even[1]) == 160).all()


def test_same_call_same_answer_other_seed_other_heads() -> None:
    train, test = examples(0), examples(1)
    settings: dict[str, Any] = {"steps": 60, "checkpoint": "best", "watch": test}
    first = linear(train, test.x, 4, seed=1, **settings)
    again = linear(train, test.x, 4, seed=1, **settings)
    other = linear(train, test.x, 4, seed=2, **settings)
    assert (first.scores == again.scores).all()
    assert (first.runs == again.runs).all()
    assert (first.scores != other.scores).any()
    assert first.runs.shape == (5, len(test.y))
    np.testing.assert_allclose(first.scores.sum(axis=1), 1.0)


def test_grid_is_chosen_on_inner_parts_alone() -> None:
    """A learning rate that moves nothing and one that learns: the second is taken, and test labels are never asked."""
    train, test = examples(0), examples(1)
    inner = [(examples(2), examples(3)), (examples(4, 250), examples(5, 90))]
    settings: dict[str, Any] = {"lr": [1e-7, 1e-2], "weight_decay": [0.01], "steps": 200, "standardise": True}
    found = linear(train, test.x, 4, inner=inner, **settings)
    assert found.choices["lr"] == 1e-2
    assert found.choices["inner_score"] > 0.8
    assert balanced_accuracy(found.runs[0] == test.y, test.y) > 0.8
    alone = linear(train, test.x, 4, **{**settings, "lr": [1e-2]})
    assert (alone.scores == found.scores).all()


def test_scale_of_features_does_not_matter_once_standardised() -> None:
    train, test = examples(0), examples(1)
    settings: dict[str, Any] = {"lr": [1e-2], "steps": 100, "standardise": True, "runs": 2}
    stretch = np.float32(2.0) ** np.arange(-12, 12).astype(np.float32)
    plain_x = linear(train, test.x, 4, **settings)
    stretched = linear(Examples(train.x * stretch, train.y), test.x * stretch, 4, **settings)
    np.testing.assert_allclose(plain_x.scores, stretched.scores, atol=1e-5)
    train.x[:, 3] = 1e6
    test.x[:, 3] = 1e6
    assert np.isfinite(linear(train, test.x, 4, **settings).scores).all()


def test_few_shots_train_on_few() -> None:
    train, test = examples(0, 400, classes=2), examples(1, 200, classes=2)
    settings: dict[str, Any] = {"steps": 30, "runs": 8, "lr": [1e-2], "checkpoint": "best", "watch": test}
    few = linear(train, test.x, 2, shots=3, **settings)
    many = linear(train, test.x, 2, **settings)
    spread = [np.std([balanced_accuracy(run == test.y, test.y) for run in found.runs]) for found in (few, many)]
    assert spread[0] > spread[1]
    with pytest.raises(DataError, match="300"):
        linear(train, test.x, 2, shots=300, **settings)


def test_bad_input_is_one_line() -> None:
    train, test = examples(0), examples(1)
    broken = test.x.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        linear(train, broken, 4, steps=2)
    with pytest.raises(DataError, match="watched"):
        linear(train, test.x, 4, checkpoint="best")
    with pytest.raises(DataError, match="inner parts"):
        linear(train, test.x, 4, lr=[1e-3, 1e-2])
    with pytest.raises(DataError, match="schedule"):
        linear(train, test.x, 4, steps=2, schedule="linear")


def test_read_only_features_are_taken(tmp_path: Path) -> None:
    train = examples(0)
    np.save(tmp_path / "x.npy", train.x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    kept = linear(Examples(mapped, train.y), mapped[:50], 4, steps=20)
    assert (kept.scores == linear(train, train.x[:50], 4, steps=20).scores).all()


def test_evas_draws_are_balanced_and_go_on_from_run_to_run() -> None:
    labels = np.array([1, 0] * 50)
    drawn = eva_shots(labels, 10, 3)
    assert [sorted(labels[rows].tolist()) for rows in drawn] == [[0] * 10 + [1] * 10] * 3
    assert all(len(set(rows.tolist())) == 20 for rows in drawn)
    assert len({tuple(sorted(rows.tolist())) for rows in drawn}) == 3
    assert (eva_shots(labels, 10, 2) == drawn[:2]).all()


def test_runs_start_alike_where_eva_copies_one_model() -> None:
    draw = np.random.default_rng(0)
    train = Examples(draw.normal(size=(60, 8)).astype(np.float32), draw.integers(0, 3, 60))
    for shared in (False, True):
        how = LinearSettings(steps=1, runs=3, shared_start=shared)
        heads = new_heads([train] * 3, 3, how, [(1e-3, 0.01)], (0, "linear", 0), "cpu")
        assert bool(torch.equal(heads.weight[0], heads.weight[2])) == shared
    for name in ("eva-v2", "eva-v1", "midnight"):
        assert PROTOCOLS[name].settings["shared_start"]
        assert not PROTOCOLS[name].without("eva.shared_start").settings["shared_start"]
