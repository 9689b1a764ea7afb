"""Features as kaiko's eva keeps them: `manifest.csv` (origin, embeddings, target, split, further columns) and a `.pt`
file a row.

A file holds one vector, a list of them or a matrix, and is read as tensors alone: pickled code is refused. Knows no
tasks; `evaluation.tasks.manifest` makes one of a manifest.
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.errors import DataError, OutputError
from eosin.files import PathLike, check_writable, write_text
from eosin.progress import progress_bar

MANIFEST = "manifest.csv"
COLUMNS = ("origin", "embeddings", "target", "split")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Manifest:
    """Rows of a manifest, N of them. `files`: the `.pt` of each; `origin`: what it is of; `target`: the word in the
    file; `split`: "" where the row has none; `more`: further columns by name.
    """

    path: Path
    files: list[Path]
    origin: list[str]
    target: list[str]
    split: list[str]
    more: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.files)


def is_manifest(path: PathLike) -> bool:
    """Whether `path` is a folder with a manifest, or a CSV file that has a manifest's columns."""
    path = Path(path)
    if path.is_dir():
        return (path / MANIFEST).is_file()
    if path.suffix.lower() != ".csv":
        return False
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            head = next(csv.reader(file), [])
    except (OSError, ValueError, csv.Error):
        return False
    return {"embeddings", "target"} <= set(head)


def read_manifest(path: PathLike) -> Manifest:
    """The manifest at `path`, or in the folder `path`; files are looked for beside it.

    Raises DataError, one line: no manifest, a column that is missing, a blank cell, files that are not there.
    """
    path = Path(path)
    path = path / MANIFEST if path.is_dir() else path
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file))
    except OSError as error:
        raise DataError(f"cannot read manifest {path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(f"cannot read manifest {path}: {error}") from error
    head, body = (rows[0], [row for row in rows[1:] if row]) if rows else ([], [])
    if lacking := [name for name in ("embeddings", "target") if name not in head]:
        raise DataError(f"{path}: looked for a column `{lacking[0]}`, found {', '.join(head) or 'nothing'}")
    if not body:
        raise DataError(f"{path} lists no embeddings")
    if short := [number for number, row in enumerate(body, 2) if len(row) != len(head)]:
        raise DataError(f"{path} line {short[0]} has {len(body[short[0] - 2])} cells, not {len(head)}")
    columns = {name: [row[at].strip() for row in body] for at, name in enumerate(head)}
    for name in ("embeddings", "target"):
        if "" in columns[name]:
            raise DataError(f"{path} line {columns[name].index('') + 2} has no {name}")
    files = [path.parent / name for name in columns["embeddings"]]
    there = {file: file.is_file() for file in dict.fromkeys(files)}
    if missing := [file for file, found in there.items() if not found]:
        raise DataError(f"{len(missing)} of {len(there)} files that {path} lists are missing, first {missing[0]}")
    blank = [""] * len(body)
    return Manifest(
        path,
        files,
        columns.get("origin", columns["embeddings"]),
        columns["target"],
        columns.get("split", blank),
        {name: column for name, column in columns.items() if name not in COLUMNS},
    )


def read_embeddings(path: PathLike) -> Floats:
    """The vectors of one `.pt` file, float32 [n, D], from a vector, a matrix, a list of these, or a dictionary that
    holds one of them.

    Raises DataError, one line, for a damaged file, pickled code, or anything else than finite floats.
    """
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(held, Mapping):
            if len(held) != 1:
                raise DataError(f"{path} holds {', '.join(map(str, held)) or 'nothing'}; one entry is needed")
            held = next(iter(held.values()))
        parts = list(held) if isinstance(held, list | tuple) else [held]
        if not parts or not all(isinstance(part, torch.Tensor) and part.is_floating_point() for part in parts):
            raise DataError(f"{path} holds no float tensor or list of them")
        if any(part.ndim not in (1, 2) for part in parts):
            shape = next(tuple(part.shape) for part in parts if part.ndim not in (1, 2))
            raise DataError(f"{path} holds a tensor {shape}, not vectors [D] or [n, D]")
        found = torch.cat([part.detach().reshape(-1, part.shape[-1]) for part in parts]).float().numpy()
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, AttributeError, KeyError) as error:
        raise DataError(
            # torch's unpickler says of a text file no more than the byte that it stumbled over.
            f"cannot read {path} as tensors: {_first_line(error)}"
        ) from error
    if not found.size or not np.isfinite(found).all():
        raise DataError(f"{path} holds NaN or infinite values" if found.size else f"{path} holds no values")
    return found


def _first_line(error: Exception) -> str:
    line = str(error).splitlines()[0] if str(error) else ""
    return line if " " in line else "it is damaged, or was not written by torch.save"


def read_vectors(manifest: Manifest) -> Floats:
    """One vector a row, float32 [N, D]. Raises DataError for a file with several, or of another width."""
    first = read_embeddings(manifest.files[0])
    features = np.empty((len(manifest), first.shape[1]), dtype=np.float32)
    with progress_bar(f"reading {manifest.path.parent.name}", len(manifest), "embeddings") as bar:
        for row, file in enumerate(manifest.files):
            found = read_embeddings(file)
            if found.shape != (1, features.shape[1]):
                what = f"{len(found)} vectors of {found.shape[1]} numbers, not one of {features.shape[1]}"
                raise DataError(f"{file} holds {what} as {manifest.files[0].name} does")
            features[row] = found[0]
            bar.advance()
    return features


def write_manifest(
    folder: PathLike,
    features: Floats | Sequence[Floats],
    target: Sequence[int],
    split: Sequence[str] | None = None,
    *,
    origin: Sequence[str] | None = None,
    more: Mapping[str, Sequence[Any]] | None = None,
) -> Path:
    """Write `features` so that eva reads them; returns the manifest.

    features: float32 [N, D], a vector a file; or N matrices [n, D], a bag a file (eva then needs `more["wsi_id"]`).
    target: class of each; split: train, val or test of each; origin: a name for each, its number without; more: further
    columns. The manifest comes last, so that a folder with one is whole. Raises OutputError where there is one already.
    """
    import torch

    root = check_writable(folder)
    if (root / MANIFEST).exists():
        raise OutputError(f"{root / MANIFEST} is there already; give another folder")
    names = [str(row) for row in range(len(features))] if origin is None else [str(name) for name in origin]
    columns = dict(more or {})
    for column, values in (("target", target), ("split", split), ("origin", names), *columns.items()):
        if values is not None and len(values) != len(features):
            raise ValueError(f"{len(values)} values of {column} for {len(features)} rows")
    saved = file_names(names)
    try:
        for parent in {(root / name).parent for name in saved}:
            parent.mkdir(parents=True, exist_ok=True)
        with progress_bar(f"writing {root.name}", len(saved), "embeddings") as bar:
            for name, values in zip(saved, features, strict=True):
                # A copy: torch saves all of what a view looks at.
                torch.save(torch.from_numpy(np.array(values, dtype=np.float32)), root / name)
                bar.advance()
    except OSError as error:
        raise OutputError(f"cannot write into {root}: {error.strerror or error}") from error
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, *columns])
    told = zip(names, saved, target, split or [""] * len(names), *columns.values(), strict=True)
    writer.writerows([name, file, int(label), *rest] for name, file, label, *rest in told)
    write_text(root / MANIFEST, text.getvalue())
    return root / MANIFEST


def file_names(names: Sequence[str]) -> list[str]:
    """Relative `.pt` paths for `names`, each another one, none outside of the folder.

    >>> file_names(["a/x.tif", "a/x.png", "/b", "../c.h5"])
    ['a/x.tif.pt', 'a/x.png.pt', 'b.pt', 'c.pt']
    """
    inside = ["/".join(part for part in PurePosixPath(name).parts if part not in ("/", "..")) or "_" for name in names]
    short = [str(PurePosixPath(name).with_suffix("")) for name in inside]
    counts: dict[str, int] = {}
    for name in short:
        counts[name] = counts.get(name, 0) + 1
    found, taken = [], set()
    for whole, stem in zip(inside, short, strict=True):
        name, number = stem if counts[stem] == 1 else whole, 1
        while f"{name}.pt" in taken:
            number += 1
            name = f"{whole}-{number}"
        taken.add(f"{name}.pt")
        found.append(f"{name}.pt")
    return found
