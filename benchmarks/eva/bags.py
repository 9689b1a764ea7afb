"""Our eva-v2 heads on bags beside eva 0.4.5's, on the same bags and splits.

    python benchmarks/eva/bags.py parity [--epochs 12]
    python benchmarks/eva/bags.py scores [--runs 5 --epochs 40]

in an environment with eosin, kaiko-eva==0.4.5 and jsonargparse==4.50.0 (newer ones cannot parse eva's configuration).
eva's ABMIL is loaded from its file alone, so what else its vision part requires need not be installed.

parity: one run of eva's ABMIL in eva's trainer with given first weights and order of bags: weights of the best
checkpoint, its epoch and score, the epoch that training stopped at. Bound 1e-4 (the bias of the attention score is left
out: a softmax does not see it, and Adam makes steps of what rounding leaves of its gradient). scores: mean val score of
several runs of each side, each with its own randomness, beside eva's run-to-run sd, and the seconds that each side took
from its files to scores. eva pads every bag to the longest; ours pads to the longest of a batch. Exit 0 if all holds.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import platform
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import eva
import eva_side
import lightning.pytorch as pl
import numpy as np
import torch
from eva import DataLoader, DataloadersSchema, DataModule, DatasetsSchema
from eva.core.data.datamodules.schemas import SamplersSchema
from eva.core.data.datasets import MultiEmbeddingsClassificationDataset
from eva.core.data.transforms import Pad2DTensor

from eosin.evaluation.probes.bags import BagSettings, abmil, fit_bags, new_head
from eosin.evaluation.probes.order import shuffled_epochs
from eosin.evaluation.protocols import PROTOCOLS
from eosin.evaluation.tasks import open_task
from eosin.randomness import Words

BOUND = 1e-4
_FILE = Path(eva.__path__[0]) / "vision" / "models" / "networks" / "abmil.py"
_SPEC = importlib.util.spec_from_file_location("eva_abmil", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
eva_abmil = importlib.util.module_from_spec(_SPEC)
sys.modules["eva_abmil"] = eva_abmil
_SPEC.loader.exec_module(eva_abmil)
NAMES = {
    "hidden": "projector.0",
    "attention.tanh": "gated_attention.attention_a.0",
    "attention.gate": "gated_attention.attention_b.0",
    "attention.scores": "gated_attention.attention_c",
    "classifiers.0": "classifier._network",
}


class Case(NamedTuple):
    """Bags float32 [n_i, D], labels int64; the first `train` of them train, the rest is val."""

    name: str
    bags: list[Any]
    labels: Any
    train: int
    classes: int


def planted(classes: int, count: int, width: int, longest: int) -> Case:
    """A tenth of the tiles of a bag tell its class, faintly enough that no side is always right."""
    drawn = np.random.default_rng(classes)
    labels = drawn.permutation(np.arange(count) % classes).astype(np.int64)
    centres = drawn.normal(size=(classes, width)) * 0.35
    bags = []
    for label in labels.tolist():
        bag = drawn.normal(size=(drawn.integers(longest // 3, longest + 1), width))
        bag[: max(1, len(bag) // 10)] += centres[label]
        bags.append(bag.astype(np.float32))
    name = f"planted, {classes} classes, {count} bags of {longest // 3}-{longest} x {width}"
    return Case(name, bags, labels, count * 2 // 3, classes)


def write(case: Case, folder: Path) -> None:
    """As eva keeps them: a .pt a slide and manifest.csv."""
    lines = ["origin,embeddings,target,split,wsi_id"]
    for number, (bag, label) in enumerate(zip(case.bags, case.labels.tolist(), strict=True)):
        torch.save(list(torch.from_numpy(bag)), folder / f"{number}.pt")
        split = "train" if number < case.train else "val"
        lines.append(f"s{number}.tif,{number}.pt,{label},{split},s{number}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def _to_float(target: Any) -> torch.Tensor:
    """The binary tasks' target transform; bags have arrays as targets."""
    return torch.as_tensor(target, dtype=torch.float32)


def datamodule(case: Case, folder: Path, batch: int, orders: Any = None) -> DataModule:
    """Train and val of the manifest, bags padded to the longest."""
    longest = max(len(bag) for bag in case.bags)
    columns = {"path": "embeddings", "target": "target", "split": "split", "multi_id": "wsi_id"}
    files: dict[str, Any] = {
        "root": str(folder),
        "manifest_file": "manifest.csv",
        "column_mapping": columns,
        "embeddings_transforms": Pad2DTensor(pad_size=longest, pad_value=float("-inf")),
        "target_transforms": _to_float if case.classes == 2 else None,
    }
    loader = partial(DataLoader, batch_size=batch, num_workers=0, persistent_workers=False, prefetch_factor=None)
    return DataModule(
        DatasetsSchema(
            train=MultiEmbeddingsClassificationDataset(split="train", **files),
            val=MultiEmbeddingsClassificationDataset(split="val", **files),
        ),
        DataloadersSchema(train=loader(shuffle=orders is None), val=loader(shuffle=False)),
        SamplersSchema(train=None if orders is None else eva_side.GivenOrder(orders)),
    )


class Best(pl.Callback):
    """Weights of the best epoch, and val score of each."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.scores: list[float] = []
        self.weights: dict[str, Any] = {}

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[self.metric])
        if not self.scores or score > max(self.scores):
            self.weights = {name: value.detach().clone() for name, value in module.head.state_dict().items()}
        self.scores.append(score)


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    """Our head's weights under eva's names."""
    found = {}
    for name, value in state.items():
        ours = next(word for word in NAMES if name.startswith(word))
        found[NAMES[ours] + name.removeprefix(ours)] = value
    return found


def parity(case: Case, how: BagSettings) -> bool:
    """Print a line; whether all holds."""
    width, outputs = case.bags[0].shape[1], how.outputs_for(case.classes)
    head = new_head(width, case.classes, how, 0, 0, 0)
    theirs = eva_abmil.ABMIL(width, outputs, projected_input_size=how.hidden, hidden_size_attention=how.attention)
    theirs.load_state_dict(renamed(head.state_dict()))
    stream = shuffled_epochs([case.train], [Words(0, "abmil", "order", 0, 0)])
    epochs = list(islice(stream, how.epochs + 1))
    best = Best(eva_side.METRICS[case.classes == 2])
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "bags"
        folder.mkdir()
        write(case, folder)
        data = datamodule(case, folder, how.batch, [epoch[0] for epoch in epochs])
        optimizer = partial(torch.optim.AdamW, lr=how.lr)
        module = eva_side.head_module(width, case.classes, theirs, optimizer)
        steps = how.epochs * -(-case.train // how.batch)
        patience = how.patience or 10**9
        eva_side.trainer(root, steps, patience, case.classes == 2, 1, [best]).fit(module, datamodule=data)
    train, val = np.arange(case.train), np.arange(case.train, len(case.bags))
    (one,) = fit_bags([head], case.bags, case.labels, train, val, case.classes, iter(epochs), how, "cpu")
    worst = max(
        float((value - best.weights[name]).abs().max())
        for name, value in renamed(one.state).items()
        if name != "gated_attention.attention_c.bias"
    )
    ours = (one.best_epoch, one.last_epoch, round(one.score, 6))
    their = (int(np.argmax(best.scores)) + 1, len(best.scores), round(max(best.scores), 6))
    fits = worst <= BOUND and ours == their
    print(
        f"{case.name:52s} weights {worst:.1e}  best epoch, last epoch, score {their}{'' if fits else f'  OURS {ours}'}",
        flush=True,
    )
    return fits


def scores(case: Case, how: BagSettings) -> bool:
    """Print means and seconds of both sides; whether the means differ by no more than eva's sd over runs."""
    width, binary = case.bags[0].shape[1], case.classes == 2
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "planted"
        folder.mkdir()
        write(case, folder)
        started = time.perf_counter()
        pl.seed_everything(42, verbose=False)
        fresh = {
            "class_path": "eva_abmil.ABMIL",
            "init_args": {
                "input_size": width,
                "output_size": how.outputs_for(case.classes),
                "projected_input_size": how.hidden,
            },
        }
        module = eva_side.head_module(width, case.classes, fresh, partial(torch.optim.AdamW, lr=how.lr))  # type: ignore[arg-type]
        steps = how.epochs * -(-case.train // how.batch)
        with redirect_stdout(io.StringIO()):
            run = eva_side.trainer(root, steps, how.patience or 10**9, binary, how.runs)
            run.run_evaluation_session(module, datamodule(case, folder, how.batch))
        (results,) = Path(root).rglob("results.json")
        (found,) = json.loads(results.read_text())["metrics"]["val"]
        theirs = found[eva_side.METRICS[binary]]["values"]
        taken = time.perf_counter() - started
        started = time.perf_counter()
        task = open_task(f"planted={folder}")
        bags = list(task.bags or [])
        train, val = np.flatnonzero(task.split == "train"), np.flatnonzero(task.split == "val")
        settings = dict(how.__dict__)
        prediction = abmil(bags, task.labels, train, val, val, case.classes, **settings)
        ours, mine = prediction.choices["watched_score"], time.perf_counter() - started
    difference, spread = statistics.mean(ours) - statistics.mean(theirs), statistics.stdev(theirs)
    told = [f"{statistics.mean(side):.4f} ± {statistics.stdev(side):.4f}" for side in (theirs, ours)]
    print(
        f"{case.name:52s} eva {told[0]} in {taken:.1f} s   eosin {told[1]} in {mine:.1f} s"
        f"   difference {difference:+.4f}{'' if abs(difference) <= spread else '  above eva`s sd'}",
        flush=True,
    )
    return abs(difference) <= spread


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("parity", "scores"))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--count", type=int, default=120, help="bags; two thirds train")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--longest", type=int, default=60, help="tiles of the longest bag")
    chosen = parser.parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    settings = PROTOCOLS["eva-v2"].of("slide").settings
    held = True
    for classes in (2, 3):
        case = planted(classes, chosen.count, chosen.width, chosen.longest)
        how = BagSettings(**{**settings, "epochs": chosen.epochs, "runs": chosen.runs})
        if chosen.what == "parity":
            for patience in (None, 3):
                held &= parity(case, BagSettings(**{**how.__dict__, "patience": patience}))
        else:
            held &= scores(case, how)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
