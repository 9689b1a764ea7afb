"""`eosin index`: read slides once, find their tissue, write a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

# What the words mean stands here, so that the verb below is short enough to read.
Paths = Annotated[list[str], typer.Argument(metavar="PATHS…", help="Slide files, folders, glob patterns.")]
Out = Annotated[Path, typer.Option("-o", "--out", help="The cohort file to write; again = only what is new.")]
Metadata = Annotated[
    Path | None, typer.Option("--metadata", help="CSV with a column slide (file name or slide_id); the rest is added.")
]
MppCsv = Annotated[
    Path | None,
    typer.Option("--mpp-csv", help="CSV slide,mpp: µm/px of slides that do not say it. Slide = file name."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=0, help="Processes; default one a core, 0 = in this one.")
]
Exclude = Annotated[
    Path | None, typer.Option("--exclude", help="Text file: names or patterns to leave out, one a line.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 2 if any slide fails.")]
Html = Annotated[Path | None, typer.Option("--html", help="Page with thumbnails and tissue outlines.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Read all slides again.")]
Reader = Annotated[str, typer.Option("--reader", help="auto, or openslide to read every slide through OpenSlide.")]
Foreground = Annotated[
    str, typer.Option("--foreground", help="Rule that finds tissue: density, any-stain, clam or otsu.")
]
Annotations = Annotated[
    Path | None,
    typer.Option("--annotations", help="Folder of GeoJSON (QuPath), one file a slide: goes before the rule."),
]
AnnotationClass = Annotated[
    list[str] | None,
    typer.Option("--annotation-class", help="Class of annotation that counts; may be given again. Default all."),
]
GeoJson = Annotated[Path | None, typer.Option("--geojson", help="Folder to write the foregrounds to, for QuPath.")]
RayAddress = Annotated[
    str | None,
    typer.Option("--ray", metavar="ADDRESS", help="Read on a Ray cluster: local, auto, HOST:PORT, ray://…"),
]
Part = Annotated[
    str | None, typer.Option("--part", metavar="I/N", help="Read every N-th slide only; without it joins all parts.")
]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="With the log of Ray itself.")]


def index(
    paths: Paths,
    out: Out = Path("cohort.parquet"),
    metadata: Metadata = None,
    mpp_csv: MppCsv = None,
    workers: Workers = None,
    exclude: Exclude = None,
    strict: Strict = False,
    html: Html = None,
    fresh: Fresh = False,
    reader: Reader = "auto",
    foreground: Foreground = "density",
    annotations: Annotations = None,
    annotation_class: AnnotationClass = None,
    geojson: GeoJson = None,
    ray: RayAddress = None,
    part: Part = None,
    verbose: Verbose = False,
) -> None:
    """Index slides: one row a slide with its size, µm/px and tissue; a broken one becomes its error."""
    from eosin.errors import CohortError
    from eosin.slides import Cohort

    if reader not in ("auto", "openslide"):
        raise CohortError(f"--reader {reader}: it is auto or openslide")
    read: dict[str, Any] = {
        "metadata": metadata,
        "mpp_csv": mpp_csv,
        "workers": workers,
        "exclude": [] if exclude is None else _patterns(exclude),
        "reader": None if reader == "auto" else reader,
        "foreground": foreground,
        "annotations": annotations,
        "annotation_classes": annotation_class or (),
    }
    if part is not None:
        from eosin.fleet import exclude_each_other, part_of
        from eosin.slides.index import index_part

        exclude_each_other("--part", ray=ray, strict=strict, fresh=fresh, html=html, geojson=geojson)
        index_part(paths, out, part_of(part), **read)
        return
    Cohort.index(paths, out, strict=strict, fresh=fresh, html=html, geojson=geojson, ray=ray, verbose=verbose, **read)


def _patterns(file: Path) -> list[str]:
    """Names and patterns of a text file, one a line; # begins a remark. Raises CohortError where it cannot be read."""
    from eosin.errors import CohortError

    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise CohortError(f"{file}: cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
