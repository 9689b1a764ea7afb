"""GeoJSON as QuPath writes and reads it: annotated areas to a foreground, and a foreground to annotated areas.

In: polygons and multipolygons with holes, in level-0 px. Points, lines and detected cells are no areas and are
passed over. An area whose class begins with "ignore" or "exclude" is taken away from the rest.

Out: one annotation a piece of tissue, whose outline runs along the pixels of the foreground, so that it comes
back as the same foreground.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from eosin.errors import CohortError, OutputError, SlideError
from eosin.files import PathLike, check_writable, write_text
from eosin.progress import say
from eosin.provenance import file_identity
from eosin.slides.annotations_shapes import Ring, outlines, shade
from eosin.slides.annotations_stream import features_of
from eosin.slides.cohort import Cohort
from eosin.slides.foreground import FOREGROUND_MPP, RULES, Foreground, find_foreground, rule_of
from eosin.slides.listing import match_names
from eosin.slides.reader import SAME_SCALE, Slide

SUFFIXES = (".geojson", ".json")
TAKEN_AWAY = ("ignore", "exclude")
TISSUE_CLASS = "Tissue"
BEYOND = 0.1  # share of a side by which an outline may reach beyond the slide: hands are unsteady

_NO_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")
_DETECTED = ("detection", "cell", "tile")
_TISSUE_RGB = [0, 150, 60]


class ForegroundChoice(NamedTuple):
    """Where the foreground of one slide comes from.

    rule: a name of `RULES`. file: GeoJSON that goes before the rule, with the classes of it that count.
    """

    rule: str = "density"
    file: str | None = None
    classes: tuple[str, ...] = ()

    @property
    def pin(self) -> list[Any]:
        """What changes where the same slide would get another foreground."""
        drawn = self.file and file_identity(self.file)
        return [self.rule, rule_of(self.rule).version, drawn, list(self.classes) if drawn else []]

    def find(self, slide: Slide) -> tuple[Foreground, str]:
        """The foreground of `slide`, and in words what found it: a rule with its version, a file, or both.

        Raises SlideError where the slide or the file cannot be read.
        """
        ruled = f"{self.rule} {rule_of(self.rule).version}"
        if self.file is None:
            return find_foreground(slide, rule=self.rule), ruled
        asked = []

        def by_rule() -> Foreground:
            asked.append(f"{ruled} less ")
            return find_foreground(slide, rule=self.rule)

        found = annotated_foreground(self.file, slide, max(FOREGROUND_MPP, slide.mpp), self.classes, by_rule)
        return found, "".join(asked) + "geojson"


DEFAULT_CHOICE = ForegroundChoice()


def choose_foregrounds(
    slides: Mapping[str, str],
    rule: str = "density",
    annotations: PathLike | None = None,
    classes: Sequence[str] = (),
    geojson: PathLike | None = None,
) -> dict[str, ForegroundChoice]:
    """slide_id to where its foreground comes from; says how many have a file, if `annotations` are given.

    Args:
        slides: slide_id to path.
        rule: for slides without a file.
        annotations: folder of `find_annotations`. classes: as for `annotated_foreground`.
        geojson: where foregrounds will be written: another folder, so that nothing drawn is written over.

    Raises CohortError for an unknown rule, classes without annotations, or a folder that cannot be used.
    """
    if rule not in RULES:
        raise CohortError(f"no foreground rule is called {rule}; there are {', '.join(RULES)}")
    if annotations is None:
        if classes:
            raise CohortError(f"the annotation class {classes[0]} is wanted, and no folder of annotations is given")
        return dict.fromkeys(slides, ForegroundChoice(rule))
    if geojson is not None and Path(geojson).resolve() == Path(annotations).resolve():
        raise CohortError(f"{geojson}: annotations are read from there; write foregrounds to another folder")
    files = find_annotations(annotations, slides)
    say(f"{annotations}: annotations for {len(files)} of {len(slides)} slides; the rule {rule} for the others")
    return {
        slide_id: ForegroundChoice(rule, str(files[slide_id].resolve()), tuple(sorted(set(classes))))
        if slide_id in files
        else ForegroundChoice(rule)
        for slide_id in slides
    }


def find_annotations(folder: PathLike, slides: Mapping[str, str]) -> dict[str, Path]:
    """slide_id to its file in `folder`: NAME.geojson or NAME.json, where NAME is slide_id, stem or file name.

    Args:
        folder: searched without its subfolders. Files that match no slide are said in one line.
        slides: slide_id to path.

    Raises:
        CohortError: no such folder, no such file in it, two files for one slide, or one for two.
    """
    source = Path(folder)
    if not source.is_dir():
        raise CohortError(f"{source}: no such folder of annotations")
    files: dict[str, Path] = {}
    for file in sorted(source.iterdir()):
        if file.suffix.lower() in SUFFIXES and not file.name.startswith("."):
            if file.stem in files:
                raise CohortError(f"{source}: {files[file.stem].name} and {file.name} are for one slide; keep one")
            files[file.stem] = file
    if not files:
        raise CohortError(f"{source}: no .geojson file in it; name each as its slide, e.g. a.geojson for a.svs")
    return match_names(files, slides, source)


def annotated_foreground(
    path: PathLike, slide: Slide, mpp: float, classes: Sequence[str], found: Callable[[], Foreground]
) -> Foreground:
    """The foreground that a person drew.

    Args:
        path: GeoJSON in level-0 px of `slide`.
        slide: the slide it was drawn on.
        mpp: µm a side of a pixel of the foreground; a pixel belongs to an area that holds its centre.
        classes: names of the areas that count, in any case; empty: all but those taken away.
        found: the foreground by rule, asked for where the file only takes areas away.

    Raises:
        SlideError, in one line: not GeoJSON, no area that counts, or coordinates that are not this slide's.
    """
    scale = np.array([slide.mpp_x, slide.mpp_y]) / mpp
    shape = tuple(max(math.ceil(size - SAME_SCALE), 1) for size in (slide.height * scale[1], slide.width * scale[0]))
    drawn, away = np.zeros(shape, bool), np.zeros(shape, bool)
    wanted = {name.casefold() for name in classes}
    seen: set[str] = set()
    draws = takes = False
    for number, feature in enumerate(features_of(Path(path)), start=1):
        where = f"{path}: feature {number}"
        name = _class_of(feature)
        ignored = name.casefold().startswith(TAKEN_AWAY) and name.casefold() not in wanted
        polygons = _polygons(feature, where)
        if polygons:
            seen.add(name or "no class")
        if not polygons or (wanted and not ignored and name.casefold() not in wanted):
            continue
        draws, takes = draws or not ignored, takes or ignored
        for polygon in polygons:
            rings = [_in_mask(_ring(ring, where), slide, scale, shape, where) for ring in polygon]
            if rings:
                shade(away if ignored else drawn, rings, True)
    if not draws and (wanted or not takes):
        named = f"of class {' or '.join(classes)}" if classes else "at all"
        held = f"it has areas of: {', '.join(sorted(seen))}" if seen else "it has no polygon"
        raise SlideError(f"{path}: no area {named}; {held}"[:400])
    if draws and not drawn.any():
        raise SlideError(f"{path}: its areas cover no pixel of {mpp:g} µm; coordinates are px of the slide's level 0")
    return Foreground((drawn if draws else found().mask) & ~away, mpp)


def foreground_geojson(foreground: Foreground, size: tuple[int, int], mpp: tuple[float, float]) -> str:
    """GeoJSON text of a foreground for QuPath: a FeatureCollection, one annotation of class Tissue a piece.

    Args:
        foreground: tissue of one slide.
        size, mpp: width and height of the slide in level-0 px, and its µm/px along x and y.
    """
    scale = foreground.mpp / np.asarray(mpp)
    pieces = [
        [np.minimum(ring * scale, size).round(2).tolist() for ring in polygon] for polygon in outlines(foreground.mask)
    ]
    properties = {
        "objectType": "annotation",
        "classification": {"name": TISSUE_CLASS, "color": _TISSUE_RGB},
        "isLocked": False,
    }
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]] for ring in piece]},
            "properties": properties,
        }
        for piece in pieces
    ]
    return json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":")) + "\n"


def write_annotations(cohort: Cohort, folder: PathLike) -> int:
    """Write `folder`/SLIDE_ID.geojson of every usable slide; returns how many were written.

    A file that is there and differs was perhaps edited by hand: it is kept, and one line says how many were.
    Raises OutputError where the folder cannot be written.
    """
    target = check_writable(folder)
    written, kept = 0, []
    rows = cohort.usable[["slide_id", "width", "height", "mpp_x", "mpp_y"]]
    for n, (slide_id, width, height, mpp_x, mpp_y) in enumerate(rows.itertuples(index=False)):
        file = target / f"{slide_id}.geojson"
        found = Foreground(cohort.foreground(n), cohort.foreground_mpp(n))
        text = foreground_geojson(found, (width, height), (mpp_x, mpp_y))
        if not file.exists():
            write_text(file, text)
            written += 1
        elif not _holds(file, text):
            kept.append(file)
    if kept:
        say(f"{target}: {len(kept)} files were there, differ and were kept, first {kept[0].name}; remove them to renew")
    return written


def _holds(file: Path, text: str) -> bool:
    try:
        return file.stat().st_size == len(text.encode()) and file.read_text(encoding="utf-8") == text
    except UnicodeDecodeError:
        return False
    except OSError as error:
        raise OutputError(f"{file}: cannot be read: {error.strerror or error}") from error


def _class_of(feature: dict[str, Any]) -> str:
    """QuPath's class of a feature, empty where it has none."""
    properties = feature.get("properties")
    stated = properties.get("classification") if isinstance(properties, dict) else None
    if isinstance(stated, dict):
        names = stated.get("names")
        stated = stated.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else None)
    return stated if isinstance(stated, str) else ""


def _polygons(feature: dict[str, Any], where: str) -> list[list[Any]]:
    """Coordinates of the polygons of a feature (or of a bare geometry), none where it is no drawn area."""
    properties = feature.get("properties")
    if isinstance(properties, dict) and properties.get("objectType") in _DETECTED:
        return []
    geometry = feature.get("geometry") if feature.get("type") == "Feature" else feature
    if geometry is None:
        return []
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind in _NO_AREA:
        return []
    if kind not in ("Polygon", "MultiPolygon"):
        raise SlideError(f"{where}: a geometry of type {str(kind)[:40]}; wanted are Polygon and MultiPolygon")
    coordinates = geometry.get("coordinates")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if not isinstance(polygons, list) or not all(isinstance(polygon, list) for polygon in polygons):
        raise SlideError(f"{where}: a {kind} without lists of coordinates")
    return polygons


def _ring(points: Any, where: str) -> Ring:
    """float64 [n, 2] of a ring of GeoJSON."""
    try:
        ring = np.array([point[:2] for point in points], np.float64)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise SlideError(f"{where}: its outline is no list of [x, y]") from error
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not np.isfinite(ring).all():
        raise SlideError(f"{where}: its outline is no list of at least 3 points [x, y]")
    return ring


def _in_mask(ring: Ring, slide: Slide, scale: np.ndarray, shape: tuple[int, ...], where: str) -> Ring:
    """A ring in level-0 px as one in px of the mask. Refused where it lies beyond the slide."""
    size = np.array([slide.width, slide.height])
    low, high = ring.min(axis=0), ring.max(axis=0)
    if (low < -BEYOND * size).any() or (high > (1 + BEYOND) * size).any():
        raise SlideError(
            f"{where}: reaches from ({low[0]:.0f}, {low[1]:.0f}) to ({high[0]:.0f}, {high[1]:.0f}), the slide has "
            f"{slide.width}x{slide.height} px; is it another slide's, or not in px of level 0?"
        )
    # what reaches the slide's edge reaches the edge of the mask, whose last pixels may lie half beyond it
    return np.where(ring >= size - 1e-3, np.array(shape[::-1], np.float64), ring * scale)
