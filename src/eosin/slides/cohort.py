"""A cohort: one Parquet file, one row a slide: size, µm/px, foreground, thumbnail, status, your own columns.

Everything after indexing starts from this file. Small columns are held as a pandas table; foreground and
thumbnail bytes stay on disk and are read a row group at a time. What travels to another process is about 70 bytes a
row. Indexing itself is in index.py, writing in cohort_file.py.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.errors import CohortError
from eosin.files import PathLike
from eosin.provenance import hash_of
from eosin.slides.cohort_file import BYTES, COLUMNS, row_digest, stored, write_cohort
from eosin.slides.foreground import Mask
from eosin.slides.resample import Pixels

__all__ = ["BYTES", "COLUMNS", "Cohort", "row_digest", "stored", "write_cohort"]

_GROUPS_KEPT = 2


class Cohort:
    """Slides of one cohort file, or a selection of them.

    path: the Parquet file. table: all rows without the bytes columns (columns of interfaces.md, then the
    user's own). usable: the rows with status `ok`; its row number is the slide number everywhere. hash: of
    what the usable rows hold (id, size, scale, reader, foreground), not of paths. Cheap to pickle.
    """

    def __init__(self, path: Path, table: pd.DataFrame, rows: npt.ArrayLike, digests: npt.ArrayLike) -> None:
        """`rows`: where each row of `table` lies in the file; `digests`: of each row. Use `Cohort.read`."""
        self.path = path
        vars(self)["table"] = table
        self._is_usable = np.asarray(table["status"] == "ok", dtype=bool)
        self._rows = np.asarray(rows, dtype=np.int64)
        self._digests = np.asarray(digests, dtype=np.bytes_)
        self._groups: OrderedDict[tuple[str, int], pa.Table] = OrderedDict()

    @classmethod
    def read(cls, path: PathLike) -> Cohort:
        """Open a cohort file; CohortError where it is missing, damaged or not a cohort."""
        table, digests = _read_table(Path(path))
        return cls(Path(path), table, range(len(table)), digests)

    @cached_property
    def table(self) -> pd.DataFrame:
        """All rows; read again in a process that the cohort was sent to, if it is asked for there."""
        table, digests = _read_table(self.path)
        if self._rows.max(initial=-1) >= len(table) or (digests[self._rows] != self._digests).any():
            raise CohortError(f"{self.path}: changed since it was opened; start again")
        return table.iloc[self._rows].reset_index(drop=True)

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
        foreground: str = "density",
        annotations: PathLike | None = None,
        annotation_classes: Sequence[str] = (),
        geojson: PathLike | None = None,
        ray: str | None = None,
        verbose: bool = False,
    ) -> Cohort:
        """Read slides into a cohort file: `eosin index` in Python. See `eosin.slides.index.index_slides`."""
        from eosin.slides.index import index_slides

        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        return index_slides(
            given,
            out,
            metadata,
            mpp_csv,
            workers,
            exclude,
            strict,
            fresh,
            html,
            reader,
            foreground=foreground,
            annotations=annotations,
            annotation_classes=annotation_classes,
            geojson=geojson,
            ray=ray,
            verbose=verbose,
        )

    @cached_property
    def usable(self) -> pd.DataFrame:
        """Rows with status `ok`, numbered from 0; width, height and levels are int64."""
        table = self.table[self._is_usable].reset_index(drop=True)
        return table.astype({"width": "int64", "height": "int64", "levels": "int64"})

    @cached_property
    def hash(self) -> str:
        """16 hex digits over the content of the usable rows, in order."""
        return hash_of(self._digests[self._is_usable].astype(str).tolist())

    def __len__(self) -> int:
        return int(self._is_usable.sum())

    def __repr__(self) -> str:
        return f"Cohort({str(self.path)!r}, {len(self._rows)} slides, {len(self)} usable, {self.hash})"

    def row(self, n: int) -> dict[str, Any]:
        """Usable slide `n` as a dict of plain values, without the bytes columns."""
        return {str(name): value for name, value in self.usable.iloc[n : n + 1].to_dict("records")[0].items()}

    def digest(self, n: int) -> str:
        """`row_digest` of usable slide `n`."""
        return str(self._digests[self._is_usable][n].decode())

    def foreground(self, n: int) -> Mask:
        """Tissue of usable slide `n`: bool [h, w], pixel side `foreground_mpp(n)` µm."""
        return np.asarray(_decode(self._bytes("foreground", n), cv2.IMREAD_GRAYSCALE) > 0)

    def foreground_mpp(self, n: int) -> float:
        """µm a side of a foreground pixel of usable slide `n`."""
        return float(self._foreground_mpp[n])

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
        return Cohort(self.path, table, self._rows[rows], self._digests[rows])

    @cached_property
    def _usable_rows(self) -> np.ndarray:
        return self._rows[self._is_usable]

    @cached_property
    def _foreground_mpp(self) -> np.ndarray:
        return self.usable["foreground_mpp"].to_numpy(float)

    @cached_property
    def _slide_ids(self) -> pa.StringArray:
        return pa.array(self.usable["slide_id"].tolist(), pa.string())

    def _bytes(self, column: str, n: int) -> bytes:
        row = int(self._usable_rows[n])
        try:
            size = self._file.metadata.row_group(0).num_rows  # the same in all groups but the last
            group = self._group(column, row // size)
            found = {name: group.column(name)[row % size].as_py() for name in ("slide_id", column)}
        except (OSError, IndexError, pa.ArrowException) as error:
            raise CohortError(f"{self.path}: cannot be read: {error}") from error
        if found["slide_id"] != self._slide_ids[n].as_py():
            raise CohortError(f"{self.path}: changed since it was opened; start again")
        return found[column]

    def _group(self, column: str, number: int) -> pa.Table:
        if (column, number) in self._groups:
            return self._groups[column, number]
        if len(self._groups) >= _GROUPS_KEPT:
            self._groups.popitem(last=False)
        self._groups[column, number] = self._file.read_row_group(number, ["slide_id", column], use_threads=False)
        return self._groups[column, number]

    @cached_property
    def _file(self) -> pq.ParquetFile:
        """Kept open: parsing the footer of a large cohort takes longer than reading a group."""
        return pq.ParquetFile(self.path)

    def __getstate__(self) -> dict[str, Any]:
        light = {name: getattr(self, name) for name in ("_usable_rows", "_foreground_mpp", "_slide_ids")}
        left = ("_groups", "_file", "usable", "table")
        return {name: value for name, value in (vars(self) | light).items() if name not in left}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _groups=OrderedDict())


def _read_table(file: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """All small columns of a cohort file, and the digest of each row (bytes)."""
    with _opened(file) as parquet:  # many small groups: quicker by far than pq.read_table
        stated = stored(parquet.schema_arrow)
        if stated is None:
            raise CohortError(f"{file}: not a cohort; make one with: eosin index SLIDES -o {file.name}")
        names = [name for name in parquet.schema_arrow.names if name not in BYTES]
        try:
            table = parquet.read(names).to_pandas()
        except (OSError, pa.ArrowException) as error:
            raise CohortError(f"{file}: damaged: {error}") from error
    for name in ("width", "height", "levels"):
        table[name] = table[name].astype("Int64")
    return table, np.asarray(stated["digests"], dtype=np.bytes_)


def _opened(file: Path) -> pq.ParquetFile:
    if not file.is_file():
        raise CohortError(f"{file}: no such cohort file; make one with: eosin index SLIDES -o {file.name}")
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowException) as error:
        raise CohortError(f"{file}: not a Parquet file, or damaged: {error}") from error


def _decode(data: bytes, how: int) -> np.ndarray:
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), how)
    if pixels is None:
        raise CohortError("a cohort holds a damaged picture; index it again with --fresh")
    return pixels
