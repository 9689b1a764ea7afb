"""Our eva-v2 and eva-v1 linear probes beside eva 0.4.5, on the same features and splits.

    python benchmarks/eva/linear.py metrics
    python benchmarks/eva/linear.py parity --data DATA
    python benchmarks/eva/linear.py scores --data DATA [--steps 12500]
    python benchmarks/eva/linear.py speed [--steps 12500 --runs 5 --eva-runs 5 --repeats 3]

in an environment with eosin, kaiko-eva==0.4.5 and jsonargparse==4.50.0 (newer ones cannot parse eva's configuration).

metrics: ours against eva's own classes on random input. parity: one run of eva with given first weights and order of
samples, step by step: weights and val logits after every step, val score after every epoch, best and last epoch, score
of the best checkpoint. Bound 1e-4. scores: mean balanced accuracy of 5 runs of each side, from the same first weights,
each side with its own orders, beside eva's run-to-run sd. speed: wall seconds from files to scores, early stopping
off; eva at the fastest of 0, 1, 2 loader workers (found on a short run), ours from eva's own .pt files and from .npy.
eva does its runs one after the other, so --eva-runs 1 beside our 5 is a lower bound of the ratio. Exit 0 if all holds,
else 1.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from cases import Case, colon5, kather, read_eva, read_store, synthetic, write_eva, write_store
from torch import nn

from eosin.evaluation.eva_metrics import binary_metrics, multiclass_metrics
from eosin.evaluation.probes import Examples, linear
from eosin.evaluation.probes.decisions import Scorer, decide
from eosin.evaluation.probes.linear import eva_shots
from eosin.evaluation.probes.linear_fit import LinearSettings, new_heads, train_watched
from eosin.evaluation.probes.order import shuffled_epochs
from eosin.evaluation.probes.schedules import lr_factors
from eosin.evaluation.protocols import PROTOCOLS
from eosin.randomness import Words

BOUND = 1e-4
KEY = (0, "linear", 0)
NO_PATIENCE = 10**9


def parity(cases: list[Case], steps: int) -> bool:
    """Print a line for each case and protocol; True if all hold."""
    import eva_side

    columns = f"{'weights':>9s} {'logits':>9s} {'scores':>9s}"
    print(f"{'case':44s} {'protocol':8s} {'steps':>5s} {columns}  best/last step, score", flush=True)
    held = True
    for case in cases:
        for name in ("eva-v2", "eva-v1"):
            how = LinearSettings(**{**PROTOCOLS[name].settings, "steps": steps, "runs": 1, "patience": 4})
            if name == "eva-v1" and case.classes == 2:
                # v1 watched plain accuracy there; eva 0.4.5 is told to watch balanced accuracy in all of these.
                how = LinearSettings(**{**how.__dict__, "binary_monitor": None})
            with tempfile.TemporaryDirectory() as folder:
                found = _beside(case, how, name, write_eva(case, Path(folder)), eva_side)
            held &= found
    return held


def _beside(case: Case, how: LinearSettings, name: str, folder: Path, eva_side: Any) -> bool:
    grid = [(how.lr[0], how.weight_decay[0])]
    heads = new_heads([case.train], case.classes, how, grid, KEY, "cpu")
    head = _first_weights(case, how)
    count = len(case.train.y)
    per_epoch = -(-count // how.batch)
    drawn = shuffled_epochs([count], [Words(*KEY, "order", 0)])
    orders = [order[0] for order in islice(drawn, -(-how.steps // per_epoch) + 1)]
    if name == "eva-v2":
        optimizer, more = partial(torch.optim.AdamW, lr=how.lr[0]), {}
    else:
        optimizer = partial(torch.optim.SGD, lr=how.lr[0], momentum=how.momentum, weight_decay=0.0)
        more = {"lr_scheduler": partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=how.steps)}
    patience = how.patience or NO_PATIENCE
    theirs, final = eva_side.traced(
        folder, head, case.classes, how.steps, how.batch, patience, orders, optimizer, **more
    )

    factors = lr_factors(how.schedule, how.per, how.steps, per_epoch).tolist()
    rows = [batch for order in orders for batch in order.split(how.batch)]
    x = torch.from_numpy(case.val.x)
    scorer = Scorer(torch.from_numpy(case.val.y), case.classes, how.monitor_for(case.classes))
    looks = dict(theirs.scores)
    worst = [0.0, 0.0, 0.0]
    for step, (weight, bias) in enumerate(zip(theirs.weights, theirs.biases, strict=True), 1):
        heads.step(rows[step - 1][None], factors[step - 1])
        logits = heads.logits(x)[0, 0]
        worst[0] = max(
            worst[0], float((heads.weight[0, 0] - weight).abs().max()), float((heads.bias[0, 0] - bias).abs().max())
        )
        worst[1] = max(worst[1], float((logits - (x @ weight.T + bias)).abs().max()))
        if step in looks:
            worst[2] = max(worst[2], abs(float(scorer(decide(logits, how.cut))) - looks[step]))
    watch = train_watched([case.train], case.val, case.classes, how, grid, KEY, "cpu")
    ours = (int(watch.best_step[0, 0]), int(watch.last_step[0, 0]), float(watch.best[0, 0]))
    their = (max(looks, key=lambda step: (looks[step], -step)), max(looks), final)
    same = ours[:2] == their[:2] and abs(ours[2] - their[2]) < 1e-6
    told = f"{their[0]}/{their[1]}, {their[2]:.4f}" + ("" if same else f"; ours {ours[0]}/{ours[1]}, {ours[2]:.4f}")
    fits = max(worst) <= BOUND and same
    print(
        f"{case.name:44s} {name:8s} {len(theirs.weights):5d} {worst[0]:9.1e} {worst[1]:9.1e} {worst[2]:9.1e}  {told}"
        f"{'' if fits else '  OUT OF BOUNDS'}",
        flush=True,
    )
    return fits


def metrics(draws: int = 200) -> bool:
    """Print how far our metrics and ten-shot draws are from eva's own, on random input; True if within 1e-6."""
    import eva_side
    import numpy as np

    worst: dict[str, float] = {}
    for draw in range(draws):
        drawn = np.random.default_rng(draw)
        # Every other draw misses a class.
        labels = drawn.integers(0, 4 if draw % 2 else 3, 60)
        scores = drawn.dirichlet(np.ones(4), 60).astype(np.float32)
        ours = {**binary_metrics(scores[:, 0], labels % 2), **multiclass_metrics(scores, labels)}
        for name, value in eva_side.metrics_of(scores, labels).items():
            worst[name] = max(worst.get(name, 0.0), abs(value - ours[name]))
    for name, value in worst.items():
        print(f"{name:24s} max |difference| {value:.1e} over {draws} random draws")
    labels = np.random.default_rng(0).integers(0, 2, 500)
    same = eva_side.shots_of(labels, 10, 5) == eva_shots(labels, 10, 5).tolist()
    print(f"{'shots of 5 runs':24s} {'equal' if same else 'NOT EQUAL'}")
    return max(worst.values()) <= 1e-6 and same


def scores(cases: list[Case], steps: int, runs: int) -> bool:
    """Print the means of both sides; True if they differ by no more than eva's sd over runs."""
    import eva_side

    print(f"{'case':44s} {'eva':>22s} {'eosin':>22s} {'difference':>11s}")
    held = True
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            write_eva(case, Path(folder))
            width, patience = case.train.x.shape[1], _patience(case, steps)
            how = LinearSettings(**{**PROTOCOLS["eva-v2"].settings, "steps": steps})
            theirs = eva_side.session(
                Path(folder), width, case.classes, steps, runs, 0, patience, 42, _first_weights(case, how)
            )
        ours = _ours(case.train, case.val, case.classes, steps, runs)
        difference, spread = statistics.mean(ours) - statistics.mean(theirs), statistics.stdev(theirs)
        held &= abs(difference) <= spread
        print(
            f"{case.name:44s} {_told(theirs)} {_told(ours)} {difference:+11.4f}"
            f"{'' if abs(difference) <= spread else '  above eva`s sd'}",
            flush=True,
        )
    return held


def _first_weights(case: Case, how: LinearSettings) -> nn.Linear:
    """The head that all our runs start from, and all of eva's (which copies one model a run)."""
    heads = new_heads([case.train], case.classes, how, [(how.lr[0], how.weight_decay[0])], KEY, "cpu")
    head = nn.Linear(case.train.x.shape[1], heads.shape[2])
    with torch.no_grad():
        head.weight.copy_(heads.weight[0, 0])
        head.bias.copy_(heads.bias[0, 0])
    return head


def _patience(case: Case, steps: int) -> int:
    return LinearSettings(steps=steps, patience_share=0.2).patience_for(len(case.train.y)) or NO_PATIENCE


def _ours(train: Examples, val: Examples, classes: int, steps: int, runs: int, **more: Any) -> list[float]:
    """Val scores of our runs under eva-v2."""
    settings = {**PROTOCOLS["eva-v2"].settings, "steps": steps, "runs": runs, **more}
    found = linear(train, val.x, classes, watch=val, **settings)
    return list(found.choices["watched_score"])


def _told(values: list[float]) -> str:
    return (
        f"{statistics.mean(values):10.4f} ± {statistics.stdev(values):.4f}   "
        if len(values) > 1
        else f"{values[0]:10.4f}"
    )


def speed(case: Case, steps: int, runs: int, eva_runs: int, repeats: int, trial: int, workers: int | None) -> None:
    """Print seconds of each repeat of both sides, and the ratio of the medians, eva's as it was: of `eva_runs` runs."""
    import eva_side

    with tempfile.TemporaryDirectory() as root:
        folder, store = write_eva(case, Path(root) / "eva"), Path(root) / "npy"
        write_store(case, store)
        width = case.train.x.shape[1]
        if workers is None:
            tried = {}
            for count in (0, 1, 2):
                started = time.perf_counter()
                eva_side.session(folder, width, case.classes, trial, 1, count, NO_PATIENCE, 42)
                tried[count] = time.perf_counter() - started
            workers = min(tried, key=tried.__getitem__)
            print(f"eva, {trial} steps, by workers: {', '.join(f'{n}: {s:.1f} s' for n, s in tried.items())}")
        times: dict[str, list[float]] = {"ours, .pt": [], "ours, .npy": [], "eva": []}
        for repeat in range(repeats):
            for name, read, place in (("ours, .pt", read_eva, folder), ("ours, .npy", read_store, store)):
                started = time.perf_counter()
                train, val = read(place, "train"), read(place, "val")
                found = _ours(train, val, case.classes, steps, runs, patience_share=None, seed=repeat)
                times[name].append(time.perf_counter() - started)
            started = time.perf_counter()
            theirs = eva_side.session(folder, width, case.classes, steps, eva_runs, workers, NO_PATIENCE, 42 + repeat)
            times["eva"].append(time.perf_counter() - started)
            told = ", ".join(f"{name} {taken[-1]:.2f} s" for name, taken in times.items())
            print(f"repeat {repeat + 1}: {told}; ours {_told(found)} eva {_told(theirs)}", flush=True)
        median = {name: statistics.median(taken) for name, taken in times.items()}
        print(
            f"{case.name}, {steps:,} steps, ours {runs} runs, eva {eva_runs} with {workers} workers,"
            f" {torch.get_num_threads()} threads"
        )
        for name in ("ours, .pt", "ours, .npy"):
            ratio = median["eva"] / median[name]
            print(f"  {name}: median {median[name]:.2f} s, eva {median['eva']:.1f} s, ratio {ratio:.0f}")


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("metrics", "parity", "scores", "speed"))
    parser.add_argument("--data", type=Path, help="folder with kather2016_texture_features and colon5_tiles")
    parser.add_argument("--steps", type=int, default=12_500)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--eva-runs", type=int, help="runs of eva that are timed; --runs without")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trial", type=int, default=100, help="steps of the runs that choose eva's workers")
    parser.add_argument("--workers", type=int, help="eva's loader workers, instead of choosing")
    parser.add_argument("--count", type=int, default=5_000, help="synthetic training samples")
    chosen = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    if chosen.what == "metrics":
        return 0 if metrics() else 1
    if chosen.what == "speed":
        eva_runs = chosen.eva_runs or chosen.runs
        data = synthetic(4, chosen.count)
        speed(data, chosen.steps, chosen.runs, eva_runs, chosen.repeats, chosen.trial, chosen.workers)
        return 0
    cases = [synthetic(4, chosen.count), synthetic(2, chosen.count)]
    if chosen.data is not None:
        cases += [kather(chosen.data), colon5(chosen.data, 5), colon5(chosen.data, 2)]
    held = parity(cases, chosen.steps) if chosen.what == "parity" else scores(cases, chosen.steps, chosen.runs)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
