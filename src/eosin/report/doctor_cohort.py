"""What a cohort file tells about its slides without opening them: counts, scales, errors, duplicates, gaps."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from eosin.randomness import Words
from eosin.slides import Cohort
from eosin.slides.uri import is_uri
from eosin.tiles import TilesConfig

MOST_TISSUE = 0.95
NAMED = 5
_ASKED_FOR_SIZE = 5000  # suspected duplicates whose files are looked at
_BIN_EDGES = (0.0, 0.15, 0.2, 0.23, 0.27, 0.33, 0.4, 0.45, 0.55, 0.7, 0.9, 1.1, 1.5, 2.5, 5.0, 20.01)

_ERRORS = (
    (
        r"does not say its µm/px",
        "do not say their µm/px",
        "state it: eosin index … --mpp-csv FILE (columns slide,mpp)",
    ),
    (r"µm/px is not believable", "state a µm/px that no slide has", "state the true one with --mpp-csv FILE"),
    (r"empty file", "are empty files", "copy them again"),
    (
        r"not a slide that OpenSlide knows",
        "are of no format that is read, or damaged",
        "convert them to tiled pyramidal TIFF, or leave them out with --exclude",
    ),
    (r"truncated|became shorter|past the end", "are cut off", "copy them again; compare their bytes with the source"),
    (
        r"crashed",
        "make the reader crash",
        "copy them again; if the source does it as well, leave them out with --exclude",
    ),
    (r"too large to decode whole", "are plain images too large to hold", "convert them to tiled pyramidal TIFF"),
    (r"8-bit|bits|channels of", "have pixels that are not 8-bit RGB", "leave them out with --exclude"),
    (r"damaged|cannot be decoded|cannot open", "are damaged", "copy them again, or leave them out with --exclude"),
    (r"cannot be read", "cannot be read from where they lie", "look at the path, the mount and the permissions"),
)


class ErrorGroup(NamedTuple):
    """Slides that failed alike: in plain words, what to do, how many, some slide_ids, one message as it was."""

    words: str
    remedy: str
    number: int
    slides: tuple[str, ...]
    example: str


class ScaleOffer(NamedTuple):
    """Slides that give tiles of one µm/px, their tissue, and about how many tiles lie side by side on it."""

    mpp: float
    slides: int
    tissue_mm2: float
    tiles: int


class Bin(NamedTuple):
    """Slides with low <= µm/px < high."""

    low: float
    high: float
    slides: int


@dataclass(frozen=True)
class CohortFacts:
    """Of all rows: counts by status. Of the usable ones: everything else; tissue in mm².

    duplicates: groups of slide_ids alike in file size, width, height, µm/px and foreground. missing: files that are
    not where they were indexed. patients: slides without a patient are counted in `without_patient`.
    """

    hash: str
    status: dict[str, int]
    vendors: dict[str, int]
    readers: dict[str, int]
    stains: dict[str, int]
    tissue_mm2: float
    mpp: tuple[Bin, ...]
    offers: tuple[ScaleOffer, ...]
    errors: tuple[ErrorGroup, ...]
    duplicates: tuple[tuple[str, ...], ...]
    without_tissue: tuple[str, ...]
    all_tissue: tuple[str, ...]
    missing: tuple[str, ...]
    patients: int
    without_patient: int
    most_of_one_patient: int
    sites: dict[str, int]
    without_site: int


def cohort_facts(cohort: Cohort, config: TilesConfig, scales: Sequence[float]) -> CohortFacts:
    """Facts of a cohort; `scales` are the wanted µm/px."""
    table = cohort.usable
    native = np.maximum(table["mpp_x"].to_numpy(float), table["mpp_y"].to_numpy(float))
    tissue = table["tissue_mm2"].to_numpy(float)
    area = (table["width"] * table["mpp_x"] * table["height"] * table["mpp_y"]).to_numpy(float) / 1e6
    names = table["slide_id"].astype(str)
    patients, sites = _given(table["patient"]), _given(table["site"])
    by_patient = patients.value_counts()
    return CohortFacts(
        hash=cohort.hash,
        status=_counts(cohort.table["status"]),
        vendors=_counts(table["vendor"]),
        readers=_counts(table["reader"]),
        stains=_counts(_given(table["stain"])),
        tissue_mm2=float(tissue.sum()),
        mpp=_bins(native),
        offers=tuple(_offer(table, native, tissue, config, mpp) for mpp in scales),
        errors=grouped_errors(cohort.table[cohort.table["status"] != "ok"].to_dict("records")),
        duplicates=_duplicates(cohort),
        without_tissue=tuple(names[tissue <= 0]),
        all_tissue=tuple(names[tissue > MOST_TISSUE * area]),
        missing=tuple(path for path in table["path"].astype(str) if not is_uri(path) and not os.path.exists(path)),
        patients=len(by_patient),
        without_patient=len(table) - len(patients),
        most_of_one_patient=int(by_patient.max()) if len(by_patient) else 0,
        sites=_counts(sites),
        without_site=len(table) - len(sites),
    )


def sampled_rows(cohort: Cohort, most: int) -> list[dict[Any, Any]]:
    """At most `most` usable rows with tissue, drawn by the cohort's slide_ids alone: the same ones every time."""
    rows = cohort.usable[cohort.usable["tissue_mm2"] > 0].to_dict("records")
    order = sorted(rows, key=lambda row: float(Words(0, "doctor", str(row["slide_id"])).uniform()))
    return order[:most]


def grouped_errors(rows: Sequence[dict[Any, Any]]) -> tuple[ErrorGroup, ...]:
    """Error rows of a cohort grouped by what went wrong, the largest group first."""
    groups: dict[tuple[str, str], list[dict[Any, Any]]] = {}
    for row in rows:
        groups.setdefault(_in_words(str(row["error"]), str(row["path"])), []).append(row)
    made = [
        ErrorGroup(*words, len(alike), tuple(str(row["slide_id"]) for row in alike[:NAMED]), str(alike[0]["error"]))
        for words, alike in groups.items()
    ]
    return tuple(sorted(made, key=lambda group: -group.number))


def _in_words(error: str, path: str) -> tuple[str, str]:
    for pattern, words, remedy in _ERRORS:
        if re.search(pattern, error.replace(path, "")):
            return words, remedy
    plain = re.sub(r"\d+", "#", error.replace(path, "").lstrip(": "))
    return f"fail: {plain}", "see the column error of the cohort; leave them out with --exclude"


def _given(column: pd.Series) -> pd.Series:
    """Values that are there."""
    text = column.dropna().astype(str)
    return text[text != ""]


def _counts(column: pd.Series) -> dict[str, int]:
    return {str(name): int(count) for name, count in Counter(column.astype(str)).most_common()}


def _bins(native: np.ndarray) -> tuple[Bin, ...]:
    counts, _ = np.histogram(native, bins=np.array(_BIN_EDGES))
    filled = np.flatnonzero(counts)
    if not len(filled):
        return ()
    return tuple(
        Bin(_BIN_EDGES[n], _BIN_EDGES[n + 1], int(counts[n])) for n in range(int(filled[0]), int(filled[-1]) + 1)
    )


def _offer(table: pd.DataFrame, native: np.ndarray, tissue: np.ndarray, config: TilesConfig, mpp: float) -> ScaleOffer:
    sides = np.minimum(table["width"] * table["mpp_x"], table["height"] * table["mpp_y"]).to_numpy(float)
    gives = (native <= mpp * config.max_upsample) & (sides >= config.size_px * mpp) & (tissue > 0)
    area = float(tissue[gives].sum())
    return ScaleOffer(mpp, int(gives.sum()), area, round(area * 1e6 / (config.size_px * mpp) ** 2))


def _duplicates(cohort: Cohort) -> tuple[tuple[str, ...], ...]:
    """Groups of usable slides that are the same file, by far: size in bytes and px, µm/px, and every mask pixel."""
    table = cohort.usable.reset_index(names="number")
    table = table[table["tissue_mm2"] > 0]
    same = ["width", "height", "mpp_x", "mpp_y", "tissue_mm2", "foreground_mpp"]
    suspects = table[table.duplicated(same, keep=False)].head(_ASKED_FOR_SIZE)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for row in suspects.to_dict("records"):
        path = str(row["path"])
        size = os.path.getsize(path) if os.path.isfile(path) else None
        mask = hash(np.packbits(cohort.foreground(int(row["number"]))).tobytes())
        groups.setdefault((*(row[name] for name in same), size, mask), []).append(str(row["slide_id"]))
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)
