"""eva 0.4.5 on a folder of embeddings, put together as its offline classification configuration files do."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import loguru
import torch
from eva import DataLoader, DataloadersSchema, DataModule, DatasetsSchema, HeadModule, Trainer
from eva.core.data.datamodules.schemas import SamplersSchema
from eva.core.data.datasets import EmbeddingsClassificationDataset
from eva.core.metrics import AverageLoss, BinaryClassificationMetrics, MulticlassClassificationMetrics
from eva.core.metrics.structs import MetricsSchema
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import Sampler

for name in [*logging.root.manager.loggerDict]:
    if "lightning" in name:
        logging.getLogger(name).setLevel(logging.ERROR)
loguru.logger.remove()
warnings.filterwarnings("ignore")

METRICS = {True: "val/BinaryBalancedAccuracy", False: "val/MulticlassAccuracy"}


def to_float(target: Tensor) -> Tensor:
    """The binary tasks' target transform."""
    return target.to(torch.float32)


class GivenOrder(Sampler[int]):
    """Epoch e visits the samples in the order orders[e]."""

    def __init__(self, orders: Sequence[Tensor]) -> None:
        self.orders, self.epoch = orders, 0

    def __len__(self) -> int:
        return len(self.orders[0])

    def __iter__(self) -> Iterator[int]:
        order = self.orders[self.epoch]
        self.epoch += 1
        return iter(order.tolist())


class Recorder(pl.Callback):
    """Weights after every step, val score after every epoch."""

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        self.scores: list[tuple[int, float]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        self.weights.append(module.head.weight.detach().clone())
        self.biases.append(module.head.bias.detach().clone())

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self.scores.append((trainer.global_step, float(trainer.callback_metrics[self.metric])))


def datamodule(
    folder: Path, binary: bool, workers: int, batch: int, orders: Sequence[Tensor] | None = None
) -> DataModule:
    """Train and val of the manifest; `orders`: given ones in place of shuffling."""
    files = {"root": str(folder), "manifest_file": "manifest.csv", "target_transforms": to_float if binary else None}
    loader = partial(DataLoader, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
    loader = partial(loader, prefetch_factor=2 if workers else None)
    return DataModule(
        DatasetsSchema(
            train=EmbeddingsClassificationDataset(split="train", **files),
            val=EmbeddingsClassificationDataset(split="val", **files),
        ),
        DataloadersSchema(train=loader(shuffle=orders is None), val=loader(shuffle=False)),
        SamplersSchema(train=None if orders is None else GivenOrder(orders)),
    )


def head_module(width: int, classes: int, head: nn.Module | None, optimizer: Callable[..., Any], **more: Any) -> Any:
    """eva's HeadModule; `head` None: a dictionary that every run builds anew, as its configuration files have it."""
    binary = classes == 2
    fresh = {
        "class_path": "torch.nn.Linear",
        "init_args": {"in_features": width, "out_features": 1 if binary else classes},
    }
    metrics = BinaryClassificationMetrics() if binary else MulticlassClassificationMetrics(num_classes=classes)
    return HeadModule(
        head=head if head is not None else fresh,
        criterion=nn.BCEWithLogitsLoss() if binary else nn.CrossEntropyLoss(),
        optimizer=optimizer,
        metrics=MetricsSchema(common=[AverageLoss(), metrics]),
        **more,
    )


def trainer(
    root: str, steps: int, patience: int, binary: bool, runs: int = 1, callbacks: Sequence[Any] = ()
) -> Trainer:
    """eva's Trainer with best checkpoint and early stopping; progress bar and loggers off, which only helps eva."""
    watched = {"monitor": METRICS[binary], "mode": "max"}
    return Trainer(
        default_root_dir=root,
        n_runs=runs,
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        checkpoint_type="best",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(filename="best", save_top_k=1, **watched),
            EarlyStopping(min_delta=0, patience=patience, **watched),
            *callbacks,
        ],
    )


def traced(
    folder: Path,
    head: nn.Linear,
    classes: int,
    steps: int,
    batch: int,
    patience: int,
    orders: Sequence[Tensor],
    optimizer: Callable[..., Any],
    **more: Any,
) -> tuple[Recorder, float]:
    """One run with given weights and order: what was recorded, and the val score of its best checkpoint."""
    binary = classes == 2
    recorder = Recorder(METRICS[binary])
    data = datamodule(folder, binary, 0, batch, orders)
    module = head_module(head.in_features, classes, head, optimizer, **more)
    with tempfile.TemporaryDirectory() as root:
        run = trainer(root, steps, patience, binary, 1, [recorder])
        run.fit(module, datamodule=data)
        (scores,) = run.validate(module, datamodule=data, ckpt_path="best", verbose=False)
        return recorder, float(scores[METRICS[binary]])


def session(
    folder: Path,
    width: int,
    classes: int,
    steps: int,
    runs: int,
    workers: int,
    patience: int,
    seed: int,
    head: nn.Linear | None = None,
) -> list[float]:
    """What `eva fit` does with its default offline configuration: val scores of `runs` runs, each a copy of `head`."""
    binary = classes == 2
    pl.seed_everything(seed, verbose=False)
    data = datamodule(folder, binary, workers, 256)
    module = head_module(width, classes, head, partial(torch.optim.AdamW, lr=3e-4))
    with tempfile.TemporaryDirectory() as root:
        with redirect_stdout(io.StringIO()):  # its table of results
            trainer(root, steps, patience, binary, runs).run_evaluation_session(module, data)
        (results,) = Path(root).rglob("results.json")
        (found,) = json.loads(results.read_text())["metrics"]["val"]
    return list(found[METRICS[binary]]["values"])


def metrics_of(scores: Any, labels: Any) -> dict[str, float]:
    """eva's metric collections: binary of scores[:, 0] and labels % 2, multiclass of all."""
    binary, many = BinaryClassificationMetrics(), MulticlassClassificationMetrics(num_classes=scores.shape[1])
    x, y = torch.from_numpy(scores), torch.from_numpy(labels)
    binary.update(preds=x[:, 0], target=y % 2)
    many.update(preds=x, target=y)
    return {name: float(value) for name, value in {**binary.compute(), **many.compute()}.items()}


class _Labelled:
    def __init__(self, labels: Any) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def load_target(self, index: int) -> Tensor:
        return torch.tensor(self.labels[index])


def shots_of(labels: Any, shots: int, runs: int) -> list[list[int]]:
    """What eva's balanced sampler, set up as in its ten-shot configuration file, gives run after run."""
    from eva.core.data.samplers.classification import BalancedSampler

    sampler = BalancedSampler(num_samples=shots, reset_generator=False)
    drawn = []
    for _ in range(runs):
        sampler.set_dataset(_Labelled(labels))
        drawn.append(list(sampler))
    return drawn
