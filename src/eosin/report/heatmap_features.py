"""Features of the slide that a heatmap shows: from a file that fits slide and heads, or embedded on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from eosin.errors import DataError, EosinError, SlideError
from eosin.features.embed_folder import EMBEDDING_FILE
from eosin.files import PathLike
from eosin.progress import say
from eosin.report.heatmap_paint import Tiles, check_inside
from eosin.report.heatmap_values import Heads
from eosin.slides import Slide, open_slide
from eosin.slides.uri import is_uri

_DEFAULT_SIZE_PX = 256
_EMBED_AGAIN = "embed the slide with that model"


def feature_file(path: PathLike, slide: PathLike) -> Path:
    """`path` itself, or in a folder of features the h5 of that slide.

    In a folder of `eosin embed` its cohort says which one that is, since slides of one name get numbers there. Raises
    DataError where there is none, or where only the name could tell and several slides have it.
    """
    named = str(slide).partition("?")[0] if is_uri(slide) else slide  # a signed address is not told to anybody
    given, stem = Path(path), Path(named).stem
    if not given.is_dir():
        return given
    row = _embedded_row(given, Path(slide))
    name = None if row is None else str(row.slide_id)
    if name is None and all((given / other).is_file() for other in (EMBEDDING_FILE, f"{stem}.h5", f"{stem}-2.h5")):
        raise DataError(f"{given} has features of several slides named {stem}; give --features {given}/NAME.h5")
    found = given / f"{name or stem}.h5"
    if not found.is_file():
        raise DataError(f"{given} has no {found.name}; give the h5 of {stem} with --features")
    return found


def _embedded_row(folder: Path, slide: Path) -> Any | None:
    """The row of this very file in the cohort that the folder was embedded from; None where that cannot be known."""
    from eosin.slides import Cohort

    try:
        told = json.loads((folder / EMBEDDING_FILE).read_text(encoding="utf-8"))
        rows = Cohort.read(told["cohort"]).usable
        here = slide.resolve()
        return next((row for row in rows.itertuples() if Path(str(row.path)).resolve() == here), None)
    except (OSError, ValueError, KeyError, TypeError, EosinError):
        return None


def open_scaled(
    slide: PathLike, mpp_csv: PathLike | None, attributes: dict[str, Any], features: Path | None = None
) -> Slide:
    """Open the slide; its scale, where the file does not say it, from `mpp_csv` or from its features.

    features: their file. Where the cohort beside it has the slide, the reader is the one that read it then.
    """
    from eosin.slides.listing import match_names, read_mpp

    path = Path(slide)
    stated = match_names(read_mpp(mpp_csv), {path.stem: str(path)}, mpp_csv).get(path.stem)
    row = None if features is None else _embedded_row(features.parent, path)
    reader = getattr(row, "reader", None) or None
    try:
        return open_slide(path, stated, reader)
    except SlideError:
        known = attributes.get("level0_mpp")
        if stated is not None or not known or known != attributes.get("level0_mpp_y", known):
            raise
        return open_slide(path, float(known), reader)


def embedded(
    heads: Heads,
    slide: Path,
    folder: Path,
    model: str | None = None,
    stride: int | None = None,
    mpp_csv: PathLike | None = None,
    device: str | None = None,
) -> Path:
    """Embed the slide as the heads' training slides were, into `folder`; the path of its h5. Again is quick.

    model: word of the encoder, without it the one that the heads name. stride: distance of tiles in px of their µm/px,
    smaller than their side for a smoother map. Raises DataError where the encoder is not known or is another one.
    """
    from eosin.features.embed import embed_slides
    from eosin.features.encoder import POOLINGS
    from eosin.features.extract import find_device
    from eosin.features.load import load_model

    info = heads.info
    word = model or (info.get("model") if info.get("model_hash") else None)
    if word is None:
        raise DataError("the heads do not say which encoder made their features; give --features F.h5, or --model")
    transform = info.get("transform") or {}
    pooling = transform.get("pooling") or info.get("pooling")
    encoder = load_model(
        word,
        pooling=pooling if pooling in POOLINGS else None,
        input_size=transform.get("input_size") or None,
        device=find_device(device),
    )
    check_model(heads, {"model": word, "model_hash": encoder.model_hash}, word)
    embed_slides(
        encoder,
        [slide],
        folder,
        mpp=info.get("mpp"),
        size=info.get("size_px") or info.get("size"),
        stride=stride or info.get("stride_px") or info.get("stride"),
        mpp_csv=mpp_csv,
        device=device,
    )
    return feature_file(folder, slide)


def check_model(heads: Heads, attributes: dict[str, Any], source: PathLike) -> None:
    """Raise DataError where features are of another model than the heads were trained on, as far as both say."""
    trained, given = heads.info.get("model_hash"), attributes.get("model_hash")
    if trained and given and str(trained) != str(given):
        raise DataError(
            f"{source}: features of {attributes.get('model') or 'a model'} ({given}), the heads were trained on "
            f"{heads.info.get('model') or 'another'} ({trained}); {_EMBED_AGAIN}"
        )


def tiles_of(coords: Any, attributes: dict[str, Any], slide: Slide, source: PathLike) -> Tiles:
    """Where the tiles of a feature file lie on `slide`.

    The side of a tile comes from patch_size and µm/px where the file has them, else from patch_size_level0, else from
    the smallest step between tiles. Raises DataError where there are no coordinates, the file states another slide
    size, or tiles lie outside the slide.
    """
    corners = np.asarray(coords) if coords is not None else np.zeros((0, 2))
    if corners.ndim != 2 or corners.shape[1:] != (2,) or len(corners) == 0:
        raise DataError(f"{source}: no coordinates of tiles; a heatmap needs an h5 with coords [N, 2]")
    stated = [attributes.get(f"level0_{side}") for side in ("width", "height")]
    if all(side is not None for side in stated) and stated != [slide.width, slide.height]:
        raise DataError(
            f"{source}: the features are of a slide of {stated[0]}x{stated[1]} px, {slide.path.name} has "
            f"{slide.width}x{slide.height}; give the slide that they are of"
        )
    name = str(attributes.get("name") or slide.path.stem)
    if slide.path.stem not in (name, Path(name).stem) and not name.startswith(f"{slide.path.stem}-"):
        say(f"{source} says that it is of {name}; its tiles are drawn on {slide.path.name}")
    size = int(attributes.get("patch_size") or _DEFAULT_SIZE_PX)
    mpp, level0 = attributes.get("mpp") or attributes.get("target_mpp"), attributes.get("patch_size_level0")
    if mpp and attributes.get("patch_size"):
        side_um = size * float(mpp)
    else:
        side_um = (float(level0) if level0 else _smallest_step(corners)) * slide.mpp_x
        mpp = side_um / size
    tiles = Tiles(corners.astype(np.int64), (side_um / slide.mpp_x, side_um / slide.mpp_y), size, float(mpp))
    check_inside(tiles, slide, str(source))
    return tiles


def _smallest_step(corners: np.ndarray) -> float:
    steps = [np.diff(np.unique(corners[:, axis])) for axis in (0, 1)]
    found = [int(step.min()) for step in steps if len(step)]
    return float(min(found)) if found else float(_DEFAULT_SIZE_PX)
