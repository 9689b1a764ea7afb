"""Features and splits that both sides are given, and how eva keeps them on disk."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from eosin.evaluation.probes import Examples


class Case(NamedTuple):
    """Train and val of one task; `classes` 2 is trained with one logit, as eva does with its binary tasks."""

    name: str
    train: Examples
    val: Examples
    classes: int


def synthetic(classes: int, count: int = 5_000, width: int = 384, held_out: int = 1_000) -> Case:
    """Gaussian classes that overlap: balanced accuracy is neither chance nor 1."""
    drawn = np.random.default_rng(classes)
    centres = drawn.normal(size=(classes, width)) * 0.1
    labels = drawn.integers(0, classes, count + held_out)
    x = (drawn.normal(size=(len(labels), width)) + centres[labels]).astype(np.float32)
    name = f"synthetic, {classes} classes, {count:,} x {width}"
    return Case(name, Examples(x[:count], labels[:count]), Examples(x[count:], labels[count:]), classes)


def kather(data: Path) -> Case:
    """Texture features of 5,000 real tiles (Kather et al. 2016), columns scaled, every fifth tile held out."""
    with np.load(data / "kather2016_texture_features" / "features.npz") as archive:
        x, y = archive["features"], archive["labels"].astype(np.int64)
    return _fifths(f"kather2016 texture, 8 classes, {len(y) * 4 // 5:,} x {x.shape[1]}", x, y, 8)


def colon5(data: Path, classes: int) -> Case:
    """Colour features of real colon tiles with their own split; 2 classes: the first one against the others."""
    from eosin.evaluation.tasks import open_task
    from eosin.features import embed_images, load_model

    task = open_task(f"colon5={data / 'colon5_tiles'}")
    assert task.images is not None
    assert task.split is not None
    x = embed_images(load_model("colour"), task.images, 64, 0, "colon5, colour")
    x = ((x - x.mean(0)) / (x.std(0) + 1e-6)).astype(np.float32)
    y = task.labels if classes > 2 else (task.labels == 0).astype(np.int64)
    first, second = task.split == "train", task.split != "train"
    name = f"colon5 colour, {classes} classes, {int(first.sum()):,} x {x.shape[1]}"
    return Case(name, Examples(x[first], y[first]), Examples(x[second], y[second]), classes)


def _fifths(name: str, x: npt.NDArray[np.float32], y: npt.NDArray[np.int64], classes: int) -> Case:
    x = ((x - x.mean(0)) / x.std(0)).astype(np.float32)
    held_out = np.arange(len(y)) % 5 == 0
    return Case(name, Examples(x[~held_out], y[~held_out]), Examples(x[held_out], y[held_out]), classes)


def write_eva(case: Case, folder: Path) -> Path:
    """The case as eva writes embeddings: one .pt file a sample and a manifest.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["origin,embeddings,target,split"]
    for split, part in (("train", case.train), ("val", case.val)):
        for number, (row, label) in enumerate(zip(torch.from_numpy(part.x), part.y.tolist(), strict=True)):
            file = f"{split}-{number}.pt"
            torch.save([row.clone()], folder / file)
            lines.append(f"{split}-{number}.png,{file},{label},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def read_eva(folder: Path, split: str) -> Examples:
    """The same read back by us, once."""
    import pandas

    manifest = pandas.read_csv(folder / "manifest.csv")
    manifest = manifest[manifest["split"] == split]
    rows = [torch.load(folder / file, weights_only=True)[0] for file in manifest["embeddings"]]
    return Examples(torch.stack(rows).numpy(), manifest["target"].to_numpy(np.int64))


def write_store(case: Case, folder: Path) -> None:
    """The case as four .npy files, which is how our feature store keeps arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in (("train", case.train), ("val", case.val)):
        np.save(folder / f"{split}.x.npy", part.x)
        np.save(folder / f"{split}.y.npy", part.y)


def read_store(folder: Path, split: str) -> Examples:
    """The same, memory-mapped."""
    return Examples(np.load(folder / f"{split}.x.npy", mmap_mode="r"), np.load(folder / f"{split}.y.npy"))
