"""A cohort: one Parquet file, one row a slide: size, µm/px, foreground, thumbnail, status, your own columns.

Everything after indexing starts from this file. Small columns are held as a pandas table; foreground and
thumbnail bytes stay on disk and are read a row group at a time. Indexing itself is in index.py.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import CohortError
from eosin.files import PathLike, atomic_path
from eosin.provenance import hash_of
from eosin.slides.foreground import Mask
from eosin.slides.resample import Pixels

COLUMNS: dict[str, pa.DataType] = {
    "slide_id": pa.string(),
    "path": pa.string(),
    "vendor": pa.string(),
    "reader": pa.string(),
    "width": pa.int64(),
    "height": pa.int64(),
    "mpp_x": pa.float64(),
    "mpp_y": pa.float64(),
    "levels": pa.int64(),
    "tissue_mm2": pa.float64(),
    "foreground": pa.binary(),
    "foreground_mpp": pa.float64(),
    "thumbnail": pa.binary(),
    "status": pa.string(),
    "error": pa.string(),
    "patient": pa.string(),
    "site": pa.string(),
    "stain": pa.string(),
}
BYTES = ("foreground", "thumbnail")
_ROWS_A_GROUP = 64
_REMEMBERED = 64
_KEY = b"eosin.cohort"


class Cohort:
    """Slides of one cohort file, or a selection of them.

    path: the Parquet file. table: all rows without the bytes columns (columns of interfaces.md, then the
    user's own). usable: the rows with status `ok`; its row number is the slide number everywhere. hash: of
    what the usable rows hold (id, size, scale, reader, foreground), not of paths. Cheap to pickle.
    """

    def __init__(self, path: Path, table: pd.DataFrame, rows: Sequence[int], digests: Sequence[str]) -> None:
        """`rows`: where each row of `table` lies in the file; `digests`: of each row. Use `Cohort.read`."""
        self.path = path
        self.table = table
        self._rows = np.asarray(rows, dtype=np.int64)
        self._digests = list(digests)
        self._remembered: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    @classmethod
    def read(cls, path: PathLike) -> Cohort:
        """Open a cohort file; CohortError where it is missing, damaged or not a cohort."""
        file = Path(path)
        schema = _schema(file)
        stated = stored(schema)
        if stated is None:
            raise CohortError(f"{file}: not a cohort; make one with: eosin index SLIDES -o {file.name}")
        names = [name for name in schema.names if name not in BYTES]
        try:
            table = pq.read_table(file, columns=names).to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise CohortError(f"{file}: damaged: {error}") from error
        for name in ("width", "height", "levels"):
            table[name] = table[name].astype("Int64")
        return cls(file, table, range(len(table)), stated["digests"])

    @staticmethod
    def index(
        paths: Iterable[PathLike] | PathLike,
        out: PathLike,
        metadata: PathLike | None = None,
        mpp_csv: PathLike | None = None,
        workers: int | None = None,
        exclude: Sequence[str] = (),
        strict: bool = False,
        fresh: bool = False,
        html: PathLike | None = None,
        reader: str | None = None,
    ) -> Cohort:
        """Read slides into a cohort file: `eosin index` in Python. See `eosin.slides.index.index_slides`."""
        from eosin.slides.index import index_slides

        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        return index_slides(given, out, metadata, mpp_csv, workers, exclude, strict, fresh, html, reader)

    @cached_property
    def usable(self) -> pd.DataFrame:
        """Rows with status `ok`, numbered from 0; width, height and levels are int64."""
        table = self.table[self._is_usable].reset_index(drop=True)
        return table.astype({"width": "int64", "height": "int64", "levels": "int64"})

    @cached_property
    def hash(self) -> str:
        """16 hex digits over the content of the usable rows, in order."""
        return hash_of([digest for digest, usable in zip(self._digests, self._is_usable, strict=True) if usable])

    @property
    def _is_usable(self) -> np.ndarray:
        return np.asarray(self.table["status"] == "ok", dtype=bool)

    def __len__(self) -> int:
        return len(self.usable)

    def __repr__(self) -> str:
        return f"Cohort({str(self.path)!r}, {len(self.table)} slides, {len(self)} usable, {self.hash})"

    def foreground(self, n: int) -> Mask:
        """Tissue of usable slide `n`: bool [h, w], pixel side `foreground_mpp(n)` µm."""
        return np.asarray(_decode(self._bytes("foreground", n), cv2.IMREAD_GRAYSCALE) > 0)

    def foreground_mpp(self, n: int) -> float:
        """µm a side of a foreground pixel of usable slide `n`."""
        return float(self.usable["foreground_mpp"].iloc[n])

    def thumbnail(self, n: int) -> Pixels:
        """Overview of usable slide `n`: uint8 RGB [h, w, 3], longer side at most 512 px."""
        return np.ascontiguousarray(_decode(self._bytes("thumbnail", n), cv2.IMREAD_COLOR)[..., ::-1])

    def where(self, expression: str) -> Cohort:
        """The slides for which a pandas query holds, e.g. `stain == "HE" and tissue_mm2 > 1`.

        CohortError where the expression is none or leaves no usable slide.
        """
        try:
            kept = self.table.assign(_row=np.arange(len(self.table))).query(expression, engine="python")["_row"]
            rows = np.asarray(kept, dtype=np.int64)
        except Exception as error:  # pandas raises anything from SyntaxError to TypeError
            names = ", ".join(str(name) for name in self.table.columns)
            raise CohortError(f"where {expression!r}: {error} (columns: {names})") from error
        if not self._is_usable[rows].any():
            raise CohortError(f"where {expression!r}: no usable slide of {self.path} is left")
        table = self.table.iloc[rows].reset_index(drop=True)
        return Cohort(self.path, table, self._rows[rows].tolist(), [self._digests[row] for row in rows])

    @cached_property
    def _usable_rows(self) -> np.ndarray:
        return self._rows[self._is_usable]

    def _bytes(self, column: str, n: int) -> bytes:
        row = int(self._usable_rows[n])
        if (column, row) not in self._remembered:
            found = _read_cell(self.path, column, row, self.usable["slide_id"].iloc[n])
            self._remembered[column, row] = found
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        return self._remembered[column, row]

    def __getstate__(self) -> dict[str, Any]:
        hidden = ("_remembered", "_usable_rows", "usable")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _remembered=OrderedDict())


def write_cohort(path: PathLike, table: pd.DataFrame, digests: Sequence[str], keys: Sequence[str]) -> None:
    """Write a cohort file atomically.

    Args:
        table: every column of COLUMNS, then the user's own; one row a slide.
        digests: of each row's content (`row_digest`), empty for rows that failed.
        keys: what each row was made from, so that a later indexing may keep it.
    """
    known = pa.table({name: pa.array(table[name].tolist(), kind) for name, kind in COLUMNS.items()})
    own = pa.Table.from_pandas(table.drop(columns=list(COLUMNS)), preserve_index=False).replace_schema_metadata(None)
    for name in own.column_names:
        known = known.append_column(name, own.column(name))
    stated = json.dumps({"format": 1, "digests": list(digests), "keys": list(keys)})
    with atomic_path(path) as temporary:
        pq.write_table(known.replace_schema_metadata({_KEY: stated}), temporary, row_group_size=_ROWS_A_GROUP)


def row_digest(row: dict[str, Any], mask: Mask) -> str:
    """Hash of what a slide is to everything downstream, wherever it lies and however the mask is packed."""
    fields = [row[name] for name in ("slide_id", "width", "height", "mpp_x", "mpp_y", "reader", "foreground_mpp")]
    return hash_of([*fields, list(mask.shape), np.packbits(mask).tobytes().hex()])


def stored(schema: pa.Schema) -> dict[str, Any] | None:
    """What `write_cohort` put beside the columns; None where the file is not a cohort."""
    text = (schema.metadata or {}).get(_KEY)
    return json.loads(text) if text and set(COLUMNS) <= set(schema.names) else None


def _schema(file: Path) -> pa.Schema:
    if not file.is_file():
        raise CohortError(f"{file}: no such cohort file; make one with: eosin index SLIDES -o {file.name}")
    try:
        return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise CohortError(f"{file}: not a Parquet file, or damaged: {error}") from error


def _read_cell(file: Path, column: str, row: int, slide_id: str) -> bytes:
    try:
        with pq.ParquetFile(file) as parquet:
            size = parquet.metadata.row_group(0).num_rows  # the same in all groups but the last
            group = parquet.read_row_group(row // size, columns=["slide_id", column])
        found = {name: group.column(name)[row % size].as_py() for name in ("slide_id", column)}
    except (OSError, IndexError, pa.ArrowException) as error:
        raise CohortError(f"{file}: cannot be read: {error}") from error
    if found["slide_id"] != slide_id:
        raise CohortError(f"{file}: changed since it was opened; start again")
    return found[column]


def _decode(data: bytes, how: int) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    if pixels is None:
        raise CohortError("a cohort holds a damaged picture; index it again with --fresh")
    return pixels
