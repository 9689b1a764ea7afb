"""HEST-bench: the expression of 50 genes in each spot, from its tile (Jaume et al., NeurIPS 2024).

Nine tasks, one an organ; folds keep patients whole and are the owners'. Expression is log(1 + counts).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from scipy import sparse

from eosin.errors import DataError
from eosin.evaluation.tasks.images import Hdf5Images, open_dataset
from eosin.evaluation.tasks.layout import PublicTask, files_in, read_csv
from eosin.evaluation.tasks.task import Task

ORGANS = {
    "IDC": "invasive ductal breast cancer",
    "PRAD": "prostate cancer",
    "PAAD": "pancreatic cancer",
    "SKCM": "melanoma",
    "COAD": "colon cancer",
    "READ": "rectal cancer",
    "CCRCC": "clear cell kidney cancer",
    "LUNG": "lung cancer",
    "LYMPH_IDC": "axillary lymph nodes of breast cancer",
}
GENES = "var_50genes.json"


def build(name: str, root: Path) -> Task:
    """The task in root/{splits,patches,adata}. Raises DataError naming what is missing or does not fit."""
    fold_of, files = _folds(name, root)
    genes = _genes(name, root)
    spots = [_words(open_dataset(patches, "barcode")) for patches, _ in files.values()]
    values = [_expression(adata, genes, own) for (_, adata), own in zip(files.values(), spots, strict=True)]
    samples = [sample for sample, own in zip(files, spots, strict=True) for _ in own]
    images = Hdf5Images([patches for patches, _ in files.values()], "img")
    if len(images) != len(samples):
        raise DataError(f"task {name}: {len(images)} tiles, but {len(samples)} barcodes in {root / 'patches'}")
    return Task(
        name=name,
        source=root,
        samples=images,
        ids=np.asarray([f"{sample}/{spot}" for sample, own in zip(files, spots, strict=True) for spot in own]),
        targets=np.concatenate(values),
        classes=tuple(genes),
        slide=np.asarray(samples),
        kind="regression",
        fold=np.asarray([fold_of[sample] for sample in samples], dtype=np.int64),
    )


def _folds(name: str, root: Path) -> tuple[dict[str, int], dict[str, tuple[Path, Path]]]:
    """Test fold of each sample, and its tiles and expression, from splits/test_0.csv, test_1.csv …"""
    fold_of: dict[str, int] = {}
    files: dict[str, tuple[Path, Path]] = {}
    tables = files_in(root, "splits/test_*.csv")
    for path in tables:
        for row in read_csv(path, "sample_id", "patches_path", "expr_path").itertuples():
            if row.sample_id in fold_of:
                raise DataError(f"task {name}: sample {row.sample_id} is tested in two folds of {root / 'splits'}")
            fold_of[row.sample_id] = int(path.stem.removeprefix("test_"))
            files[row.sample_id] = root / row.patches_path, root / row.expr_path
    if len(tables) < 2:
        raise DataError(f"task {name}: looked for splits/test_0.csv and test_1.csv in {root}, found {len(tables)}")
    if missing := [file for pair in files.values() for file in pair if not file.is_file()]:
        raise DataError(f"task {name}: {len(missing)} files that splits list are missing, first {missing[0]}")
    return fold_of, files


def _genes(name: str, root: Path) -> list[str]:
    try:
        genes = [str(gene) for gene in json.loads((root / GENES).read_text())["genes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"task {name}: cannot read `genes` of {root / GENES}: {error}") from error
    return genes


def _expression(path: Path, genes: list[str], spots: list[str]) -> npt.NDArray[np.float32]:
    """log(1 + counts) of `genes` in `spots`: float32 [spots, genes] of an .h5ad file."""
    try:
        with h5py.File(path, "r") as file:
            names = [str(file[key].attrs.get("_index", "_index")) for key in ("obs", "var")]
            packed = str(file["X"].attrs.get("encoding-type", "")) if isinstance(file["X"], h5py.Group) else ""
    except (OSError, KeyError) as error:
        raise DataError(f"cannot read {path} as .h5ad: {error}") from error
    rows, columns = (_places(path, f"{key}/{name}") for key, name in zip(("obs", "var"), names, strict=True))
    for kind, wanted, there in (("spot", spots, rows), ("gene", genes, columns)):
        if absent := [word for word in wanted if word not in there]:
            raise DataError(f"{path} lacks {len(absent)} of {len(wanted)} {kind}s, first {absent[0]}")
    if packed:
        data, indices, ends = (open_dataset(path, f"X/{part}")[:] for part in ("data", "indices", "indptr"))
        kind = sparse.csc_matrix if "csc" in packed else sparse.csr_matrix
        counts = kind((data, indices, ends), shape=(len(rows), len(columns))).tocsr()
        part = counts[[rows[spot] for spot in spots]][:, [columns[gene] for gene in genes]].toarray()
    else:
        counts = open_dataset(path, "X")[:]
        part = counts[[rows[spot] for spot in spots]][:, [columns[gene] for gene in genes]]
    return np.log1p(part.astype(np.float64)).astype(np.float32)


def _places(path: Path, key: str) -> dict[str, int]:
    return {word: row for row, word in enumerate(_words(open_dataset(path, key)))}


def _words(dataset: Any) -> list[str]:
    values = np.asarray(dataset[:]).reshape(-1).tolist()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


TASKS = tuple(
    PublicTask(
        name=f"hest-{organ.lower().replace('_', '-')}",
        about=f"{about}: expression of 50 genes",
        kind="regression",
        classes=(),
        counts=None,
        folders=(f"hest-bench/{organ}", f"bench_data/{organ}", organ),
        marks=("splits", "patches", "adata", GENES),
        read=lambda root: (),
        build=build,
        layout=("splits/test_0.csv (sample_id, patches_path, expr_path)", "patches/*.h5", "adata/*.h5ad", GENES),
        source="https://huggingface.co/datasets/MahmoodLab/hest-bench",
        licence="CC BY-NC-SA 4.0",
        scale="224 x 224 px, 0.5 µm/px",
        get=(
            "accept the licence on that page",
            "hf download --repo-type dataset MahmoodLab/hest-bench --local-dir ROOT/hest-bench",
        ),
        notes=("the folds are the owners', patients whole; slides are known, patients are not named",),
    )
    for organ, about in ORGANS.items()
)
