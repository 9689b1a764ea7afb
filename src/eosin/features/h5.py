"""Features of one slide as a file: TRIDENT's h5 (which ours is), CLAM's h5 and pt.

A file may come from anywhere: only what lies in the file itself is read (no external or soft links, no virtual or
external storage, no pickled code), and what does not fit is one line. Knows no slides and no encoders.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from eosin.errors import DataError
from eosin.files import PathLike, atomic_path

Coords = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

# A file may state shapes that it does not hold; this bounds what is asked of the memory (compressed files are smaller).
_MOST_INFLATED = 200
_SMALL_BYTES = 1 << 26


@dataclass(frozen=True)
class SlideFeatures:
    """Features of the tiles of one slide.

    features: float32 [N, D]; coords: int64 [N, 2] top-left corners in level-0 px, None where the file has none (CLAM's
    pt); attributes: what the file says of its tiles (patch_size, patch_size_level0, mpp, model_hash …).
    """

    features: Floats
    coords: Coords | None
    attributes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.features)


def read_features(path: PathLike) -> SlideFeatures:
    """Features of one slide from an h5 (ours, TRIDENT's, CLAM's; also [1, N, D]) or a CLAM pt file.

    Raises DataError, one line, for a file that is none, is damaged, or does not hold what it claims.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such feature file")
    if file.suffix == ".pt":
        return SlideFeatures(_read_pt(file), None)
    with _opened(file) as source:
        features = _read_matrix(file, source, "features")
        coords = _read_coords(file, source, len(features)) if "coords" in list(source) else None
        attributes = _attributes(file, source)
    return SlideFeatures(features, coords, attributes)


def read_attributes(path: PathLike) -> dict[str, Any]:
    """What an h5 says of its tiles, without reading them; DataError as `read_features`."""
    file = Path(path)
    with _opened(file) as source:
        _dataset(file, source, "features")
        return _attributes(file, source)


class FeatureWriter:
    """An h5 in TRIDENT's layout that is filled row by row, so that memory does not grow with the slide."""

    def __init__(self, file: h5py.File, coords: Coords, attributes: Mapping[str, Any], encoder: str) -> None:
        self._file = file
        self._count = len(coords)
        table = file.create_dataset("coords", data=coords.astype(np.int64))
        for name, value in attributes.items():
            table.attrs[name] = value
        self._attributes = {"name": str(attributes.get("name", "")), "encoder": encoder}

    def write(self, name: str, rows: Coords, values: npt.NDArray[Any]) -> None:
        """Put `values` [n, …] into rows `rows` int64 [n] of the dataset `name`, made with N rows on first use."""
        if name not in self._file:
            made = self._file.create_dataset(name, (self._count, *values.shape[1:]), values.dtype)
            made.attrs.update(self._attributes)
        target = self._file[name]
        order = np.argsort(rows)
        for run in np.split(order, np.flatnonzero(np.diff(rows[order]) != 1) + 1):
            target[int(rows[run[0]]) : int(rows[run[-1]]) + 1] = values[run]


@contextmanager
def feature_writer(
    path: PathLike, coords: Coords, attributes: Mapping[str, Any], encoder: str = ""
) -> Iterator[FeatureWriter]:
    """Yield a `FeatureWriter`; `path` is there only once the block has ended well.

    coords: int [N, 2] level-0 px; attributes: of the tiles, stored with `coords` as TRIDENT does. What a killed process
    left behind for the same path is removed. Raises OutputError where the file cannot be written.
    """
    target = Path(path)
    for left in target.parent.glob(f".{escape(target.name)}.*.tmp"):
        left.unlink(missing_ok=True)
    with atomic_path(target) as temporary, _plain_errors():
        file = h5py.File(temporary, "w")
        try:
            yield FeatureWriter(file, coords, attributes, encoder)
        except BaseException:
            with suppress(OSError, RuntimeError):  # on a full disk closing fails as well
                file.close()
            raise
        file.close()


@contextmanager
def _plain_errors() -> Iterator[None]:
    """HDF5 wraps what the system says (disk full, file too large) in its own words; raise that as it is."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        number = re.search(r"errno = (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def write_clam(folder: PathLike, source: PathLike) -> None:
    """Lay the h5 `source` out for CLAM: `folder`/h5_files/NAME.h5 (the same file) and pt_files/NAME.pt."""
    import torch

    source, folder = Path(source), Path(folder)
    with atomic_path(folder / "pt_files" / f"{source.stem}.pt") as temporary:
        torch.save(torch.from_numpy(read_features(source).features), temporary)
    with atomic_path(folder / "h5_files" / source.name) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # a file system without hard links
            temporary.write_bytes(source.read_bytes())


@contextmanager
def _opened(file: Path) -> Iterator[h5py.File]:
    try:
        source = h5py.File(file, "r")
    except OSError as error:
        raise DataError(f"{file}: not an HDF5 file, or truncated: {error}") from error
    try:
        with source:
            yield source
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{file}: damaged: {error}") from error


def _dataset(file: Path, source: h5py.File, name: str) -> h5py.Dataset:
    """The dataset `name` that lies in this very file and can hold what it claims."""
    if name not in list(source):  # `in` on a file would follow links
        raise DataError(f"{file}: holds no {name!r} (it holds {', '.join(list(source)[:8]) or 'nothing'})")
    if not isinstance(source.get(name, getlink=True), h5py.HardLink):
        raise DataError(f"{file}: {name!r} is a link to elsewhere; links are not followed")
    found = source[name]
    if not isinstance(found, h5py.Dataset):
        raise DataError(f"{file}: {name!r} is a group, not an array")
    if found.is_virtual or found.external:
        raise DataError(f"{file}: {name!r} is stored in other files; those are not opened")
    if found.dtype.kind not in "fiu":
        raise DataError(f"{file}: {name!r} holds {found.dtype}, not numbers")
    claimed = math.prod(found.shape) * found.dtype.itemsize
    stored = found.id.get_storage_size()
    if (claimed > 0 and stored == 0) or claimed > max(_SMALL_BYTES, _MOST_INFLATED * stored):
        raise DataError(f"{file}: {name!r} claims {found.shape} and holds {stored} bytes")
    return found


def _read_matrix(file: Path, source: h5py.File, name: str) -> Floats:
    """`name` as float32 [N, D], from [N, D] or [1, N, D]."""
    found = _dataset(file, source, name)
    shape = found.shape[1:] if len(found.shape) == 3 and found.shape[0] == 1 else found.shape
    if len(shape) != 2 or found.dtype.kind != "f":
        raise DataError(f"{file}: {name!r} is {found.dtype} {found.shape}, not floats [tiles, width]")
    return np.asarray(found[...], dtype=np.float32).reshape(shape)


def _read_coords(file: Path, source: h5py.File, count: int) -> Coords:
    found = _dataset(file, source, "coords")
    if found.shape not in ((count, 2), (1, count, 2)):
        raise DataError(f"{file}: 'coords' is {found.shape}, features are of {count} tiles")
    values = found[...].reshape(count, 2)
    whole = np.rint(values) if values.dtype.kind == "f" else values
    if not np.array_equal(whole, values):  # also for NaN
        raise DataError(f"{file}: 'coords' are not whole level-0 px")
    return np.asarray(whole, dtype=np.int64)


def _attributes(file: Path, source: h5py.File) -> dict[str, Any]:
    """Plain values among the attributes of features and coords (those of coords go first)."""
    found: dict[str, Any] = {}
    for name in ("features", "coords"):
        if name in list(source):  # `in` on a file would follow links
            found |= {key: _plain(value) for key, value in _dataset(file, source, name).attrs.items()}
    return {key: value for key, value in found.items() if value is not None}


def _plain(value: Any) -> Any:
    """A number, text or list of them; None for anything else."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    return value if isinstance(value, str | int | float | bool | list) else None


def _read_pt(file: Path) -> Floats:
    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for a damaged or unsafe file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{file}: not a tensor that can be read safely: {reason[:200]}") from error
    if isinstance(found, torch.Tensor) and found.ndim == 3 and found.shape[0] == 1:
        found = found[0]
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or not found.is_floating_point():
        told = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, torch.Tensor) else type(found).__name__
        raise DataError(f"{file}: holds {told}, not floats [tiles, width]")
    return found.float().contiguous().numpy()
