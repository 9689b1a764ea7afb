"""Which files are to be indexed, what they are called, and what the user's tables say of them."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence, Set
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from eosin.errors import CohortError
from eosin.files import PathLike
from eosin.progress import say
from eosin.slides.remote_listing import find_remote
from eosin.slides.uri import is_uri

# What is taken from a folder. DICOM is not: many files are one slide there, so one of each series is named.
SLIDE_SUFFIXES = frozenset(
    [".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi", ".avs"],
)
# Taken from a folder only where the table of scales names them: label maps and figures lie beside slides.
IMAGE_SUFFIXES = frozenset([".png", ".jpg", ".jpeg"])

T = TypeVar("T")


def find_slides(
    paths: Sequence[PathLike],
    exclude: Sequence[str],
    with_mpp: Set[str],
    identities: dict[str, dict[str, int | str]] | None = None,
) -> list[str]:
    """Absolute paths and URIs of all slides under `paths`, sorted, each once.

    Files and what glob patterns match are taken as they are; folders are searched through for files with
    the suffix of a slide, and for PNG and JPEG files whose name is in `with_mpp`. URIs: see `find_remote`; what
    pins each of them is put into `identities`. CohortError where a path does not exist or nothing is found.
    """
    found: set[str] = set()
    skipped = 0
    for path in _texts(paths):
        if is_uri(path):
            remote = find_remote(path, SLIDE_SUFFIXES)
            found.update(remote)
            if identities is not None:
                identities |= remote
            continue
        matches = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
        if not matches:
            raise CohortError(f"{path}: no such file or folder, and no file matches it as a pattern")
        for match in matches:
            if os.path.isdir(match):
                inside, images = _search(match, with_mpp)
                found.update(inside)
                skipped += images
            else:
                found.add(os.path.abspath(match))
    kept = sorted(file for file in found if not _excluded(file, exclude))
    if skipped:
        say(f"{skipped} PNG or JPEG files in folders are left out: --mpp-csv does not name them")
    if not kept:
        raise CohortError(f"no slides found in {', '.join(_texts(paths))}")
    return kept


def name_slides(files: Sequence[str]) -> dict[str, str]:
    """slide_id to path: the file stem, with -2, -3 … where an earlier file has it already."""
    stems = {Path(file).stem for file in files}
    named: dict[str, str] = {}
    for file in files:
        stem = Path(file).stem
        slide_id, count = stem, 1
        while slide_id in named or (count > 1 and slide_id in stems):
            count += 1
            slide_id = f"{stem}-{count}"
        named[slide_id] = file
    return named


def match_names(table: Mapping[str, T], slides: Mapping[str, str], source: PathLike | None) -> dict[str, T]:
    """slide_id to value, for values given by file name, slide_id, or the end of a path (`folder/a.svs`).

    A name that matches two slides is refused (CohortError), as are two names for one slide. Names that
    match none are said in one line.
    """
    by_name: dict[str, set[str]] = {}
    for slide_id, path in slides.items():
        for name in (slide_id, Path(path).name):
            by_name.setdefault(name, set()).add(slide_id)
    matched: dict[str, T] = {}
    unknown = []
    for name, value in table.items():
        hits = by_name.get(name) or {key for key, path in slides.items() if path.endswith(f"/{name}")}
        if len(hits) > 1:
            paths = " and ".join(sorted(slides[hit] for hit in hits)[:2])
            raise CohortError(f"{source}: {name} matches {paths}; name more of the path, or the slide_id")
        if not hits:
            unknown.append(name)
            continue
        slide_id = hits.pop()
        if slide_id in matched:
            raise CohortError(f"{source}: two rows are for {slides[slide_id]}")
        matched[slide_id] = value
    if unknown:
        some = ", ".join(unknown[:3]) + (" …" if len(unknown) > 3 else "")
        say(f"{source}: {len(unknown)} of {len(table)} names match no slide: {some}")
    return matched


def read_mpp(path: PathLike | None) -> dict[str, float]:
    """A CSV with columns slide,mpp (or wsi,mpp): µm per level-0 px by name."""
    if path is None:
        return {}
    table = _csv(path).rename(columns={"wsi": "slide"})
    if not {"slide", "mpp"} <= set(table.columns):
        raise CohortError(f"{path}: needs the columns slide,mpp; it has {', '.join(table.columns)}")
    values = pd.to_numeric(table["mpp"], errors="coerce")
    if values.isna().any():
        row = table[values.isna()].iloc[0]
        raise CohortError(f"{path}: mpp of {row['slide']} is no number: {row['mpp']}")
    return _by_slide(path, table, values.tolist())


def read_metadata(path: PathLike | None, taken: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A CSV with a column `slide`: the other columns by name. Empty cells are None.

    Columns come as numbers where all their values are; patient, site and stain stay text. CohortError where
    a column has one of the `taken` names.
    """
    if path is None:
        return {}
    table = _csv(path)
    if "slide" not in table.columns:
        raise CohortError(f"{path}: needs a column slide (file name or slide_id); it has {', '.join(table.columns)}")
    clash = sorted(set(table.columns) & set(taken))
    if clash:
        raise CohortError(f"{path}: the column {clash[0]} is the cohort's own; rename it")
    own = table.drop(columns="slide").replace({"": None})
    for name in own.columns.difference(["patient", "site", "stain"]):
        numbers = pd.to_numeric(own[name], errors="coerce")
        if not (numbers.isna() & own[name].notna()).any():
            own[name] = numbers
    rows = [{name: None if pd.isna(value) else value for name, value in row.items()} for row in own.to_dict("records")]
    return _by_slide(path, table, rows)


def _texts(paths: Sequence[PathLike]) -> list[str]:
    return [os.fspath(path) for path in paths]


def _by_slide(path: PathLike, table: pd.DataFrame, values: list[T]) -> dict[str, T]:
    names = table["slide"].tolist()
    twice = table["slide"][table["slide"].duplicated()]
    if len(twice):
        raise CohortError(f"{path}: {twice.iloc[0]} stands in two rows")
    return dict(zip(names, values, strict=True))


def _csv(path: PathLike) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise CohortError(f"{path}: cannot be read as a CSV table: {error}") from error
    return table.rename(columns=str.strip)


def _search(folder: str, with_mpp: Set[str]) -> tuple[list[str], int]:
    found, skipped = [], 0
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            suffix = Path(name).suffix.lower()
            if name.startswith("."):
                continue
            path = os.path.abspath(os.path.join(root, name))
            if suffix in SLIDE_SUFFIXES or (suffix in IMAGE_SUFFIXES and _named(path, with_mpp)):
                found.append(path)
            elif suffix in IMAGE_SUFFIXES:
                skipped += 1
    return found, skipped


def _named(path: str, names: Set[str]) -> bool:
    return bool(names) and (
        Path(path).name in names or Path(path).stem in names or any(path.endswith(f"/{name}") for name in names)
    )


def _excluded(file: str, patterns: Sequence[str]) -> bool:
    names = (Path(file).name, Path(file).stem, file)
    return any(fnmatch(name, pattern) for pattern in patterns for name in names)
