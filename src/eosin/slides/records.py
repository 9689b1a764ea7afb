"""Rows of a large table held as columns: what 100,000 dicts would take 100 MB for takes some hundred bytes a row.

Columns have no Python objects in them, so processes that are forked share their memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa


class Records:
    """`records[n]` is row n as a dict of plain values. Cheap to pickle."""

    def __init__(self, table: pd.DataFrame, names: Sequence[str]) -> None:
        """Columns `names` of `table`; text may have nulls, numbers may not."""
        self._columns: dict[str, Any] = {name: _column(table[name]) for name in names}
        self._count = len(table)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, n: int) -> dict[str, Any]:
        return {
            name: column[n].item() if isinstance(column, np.ndarray) else column[n].as_py()
            for name, column in self._columns.items()
        }


def _column(values: pd.Series) -> Any:
    """An array of numpy, or of Arrow for text."""
    if values.dtype.kind in "iuf":
        return values.to_numpy()
    text = pa.array([None if pd.isna(value) else str(value) for value in values], pa.string())
    few = text.dictionary_encode()
    return few if len(few.dictionary) < len(text) / 8 else text
