"""Images in Parquet files, as the Hugging Face hub keeps them: a column `image` of encoded files, others beside it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas
import pyarrow
from PIL import Image
from pyarrow import parquet

from eosin.errors import DataError
from eosin.provenance import hash_file, hash_of


class ParquetImages(Sequence[npt.NDArray[np.uint8]]):
    """Images of Parquet files, read when asked for: item i is uint8 [H, W, 3] RGB of row `rows[i]`.

    `rows` int64 [N] counts through all files in order. One row group is held in memory at a time, so
    neighbours should be asked for in turn. Raises DataError naming a file that cannot be read.
    """

    def __init__(self, paths: list[Path], rows: npt.NDArray[np.int64]) -> None:
        self.paths, self.rows = paths, rows
        groups = [(file, group, size) for file, path in enumerate(paths) for group, size in enumerate(_groups(path))]
        self._groups = [(file, group) for file, group, _ in groups]
        self._ends = np.cumsum([size for _, _, size in groups])
        self._held: tuple[int, list[bytes]] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        row = int(self.rows[index])
        number = int(np.searchsorted(self._ends, row, side="right"))
        file, group = self._groups[number]
        try:
            if self._held is None or self._held[0] != number:
                column = _opened(self.paths[file]).read_row_group(group, columns=["image"]).column("image")
                self._held = number, [item["bytes"] for item in column.to_pylist()]
            first = int(self._ends[number - 1]) if number else 0
            with Image.open(io.BytesIO(self._held[1][row - first])) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, TypeError, KeyError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot read image {row} of {self.paths[file]}: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}

    def content_hash(self, hashed: Callable[[Path], str] = hash_file) -> str:
        """Hash over the bytes of all files in order and over which rows are taken."""
        return hash_of([[hashed(path) for path in self.paths], self.rows.tolist()])


def read_columns(paths: list[Path], columns: Sequence[str]) -> pandas.DataFrame:
    """The other columns of the files, one after the other, as strings. Raises DataError for a missing one."""
    tables = []
    for path in paths:
        source = _opened(path)
        if missing := [name for name in (*columns, "image") if name not in source.schema_arrow.names]:
            raise DataError(f"{path}: looked for a column `{missing[0]}`, found {', '.join(source.schema_arrow.names)}")
        tables.append(source.read(columns=list(columns)).to_pandas().astype(str))
    return pandas.concat(tables, ignore_index=True)


def _groups(path: Path) -> list[int]:
    """Rows of each row group."""
    metadata = _opened(path).metadata
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _opened(path: Path) -> parquet.ParquetFile:
    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {path} as Parquet: {error}") from error
