"""The file of a cohort: its columns, what pins a row, and writing it a row group at a time.

Memory does not grow with the number of slides as far as their pictures go. Reading is in cohort.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.files import PathLike, atomic_path
from eosin.provenance import hash_of
from eosin.slides.foreground import Mask

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
    "foreground_rule": pa.string(),
    "thumbnail": pa.binary(),
    "status": pa.string(),
    "error": pa.string(),
    "patient": pa.string(),
    "site": pa.string(),
    "stain": pa.string(),
}
BYTES = ("foreground", "thumbnail")
_LATER = {"foreground_rule"}  # columns that earlier cohort files lack
ROWS_A_GROUP = 64
_KEY = b"eosin.cohort"

Row = dict[str, Any]


def write_cohort(path: PathLike, table: pd.DataFrame, digests: Sequence[str], keys: Sequence[str]) -> None:
    """Write a cohort file atomically.

    Args:
        table: every column of COLUMNS, then the user's own; one row a slide.
        digests: of each row's content (`row_digest`), empty for rows that failed.
        keys: what each row was made from, so that a later indexing may keep it.
    """
    own = table.drop(columns=list(COLUMNS))
    write_rows(path, table[list(COLUMNS)].to_dict("records"), own, digests, keys)


def write_rows(
    path: PathLike, rows: Iterable[Row], own: pd.DataFrame, digests: Sequence[str], keys: Sequence[str]
) -> None:
    """`write_cohort` with `rows` taken as they come, a row group in memory at a time.

    rows: dicts with the names of COLUMNS, absent ones null; own: the user's columns, a row a slide, small.
    """
    extra = pa.Table.from_pandas(own, preserve_index=False).replace_schema_metadata(None)
    stated = json.dumps({"format": 1, "digests": list(digests), "keys": list(keys)})
    fields = [pa.field(name, kind) for name, kind in COLUMNS.items()] + list(extra.schema)
    schema = pa.schema(fields, metadata={_KEY: stated})
    plain = [name for name in schema.names if name not in BYTES]  # pictures are compressed already and sort by nothing
    packing = {name: "none" if name in BYTES else "snappy" for name in schema.names}
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary, schema, compression=packing, use_dictionary=plain, write_statistics=plain
        ) as writer,
    ):
        first = 0
        for group in _groups(rows):
            arrays = [pa.array([_plain(row.get(name)) for row in group], kind) for name, kind in COLUMNS.items()]
            arrays += extra.slice(first, len(group)).combine_chunks().columns
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=len(group))
            first += len(group)


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    waiting = iter(rows)
    while group := list(islice(waiting, ROWS_A_GROUP)):
        yield group


def _plain(value: Any) -> Any:
    """A cell as Arrow takes it: pandas' ways to say that nothing is there are None."""
    return None if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)) else value


def row_digest(row: Row, mask: Mask) -> str:
    """Hash of what a slide is to everything downstream, wherever it lies and however the mask is packed."""
    fields = [row[name] for name in ("slide_id", "width", "height", "mpp_x", "mpp_y", "reader", "foreground_mpp")]
    if row.get("foreground_rule"):
        fields.append(row["foreground_rule"])
    return hash_of([*fields, list(mask.shape), np.packbits(mask).tobytes().hex()])


def stored(schema: pa.Schema) -> dict[str, Any] | None:
    """What `write_cohort` put beside the columns; None where the file is not a cohort."""
    text = (schema.metadata or {}).get(_KEY)
    return json.loads(text) if text and set(COLUMNS) - _LATER <= set(schema.names) else None
