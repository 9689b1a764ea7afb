"""`eosin index`: read slides once, find their tissue, write a cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def index(
    paths: Annotated[list[str], typer.Argument(metavar="PATHS…", help="Slide files, folders, glob patterns.")],
    out: Annotated[
        Path, typer.Option("-o", "--out", help="The cohort file to write; again = only what is new.")
    ] = Path("cohort.parquet"),
    metadata: Annotated[
        Path | None,
        typer.Option("--metadata", help="CSV with a column slide (file name or slide_id); the rest is added."),
    ] = None,
    mpp_csv: Annotated[
        Path | None,
        typer.Option("--mpp-csv", help="CSV slide,mpp: µm/px of slides that do not say it. Slide = file name."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=0, help="Processes; default one a core, 0 = in this one.")
    ] = None,
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="Text file: names or patterns to leave out, one a line.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 2 if any slide fails.")] = False,
    html: Annotated[Path | None, typer.Option("--html", help="Page with thumbnails and tissue outlines.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Read all slides again.")] = False,
    reader: Annotated[
        str, typer.Option("--reader", help="auto, or openslide to read every slide through OpenSlide.")
    ] = "auto",
    foreground: Annotated[
        str, typer.Option("--foreground", help="Rule that finds tissue: density, any-stain, clam or otsu.")
    ] = "density",
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", help="Folder of GeoJSON (QuPath), one file a slide: goes before the rule."),
    ] = None,
    annotation_class: Annotated[
        list[str] | None,
        typer.Option("--annotation-class", help="Class of annotation that counts; may be given again. Default all."),
    ] = None,
    geojson: Annotated[
        Path | None, typer.Option("--geojson", help="Folder to write the foregrounds to, for QuPath.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option("--ray", metavar="ADDRESS", help="Read on a Ray cluster: local, auto, HOST:PORT, ray://…"),
    ] = None,
    part: Annotated[
        str | None,
        typer.Option("--part", metavar="I/N", help="Read every N-th slide only; without it joins all parts."),
    ] = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="With the log of Ray itself.")] = False,
) -> None:
    """Index slides: one row a slide with its size, µm/px and tissue; a broken one becomes its error."""
    from eosin.errors import CohortError
    from eosin.slides import Cohort

    if reader not in ("auto", "openslide"):
        raise CohortError(f"--reader {reader}: it is auto or openslide")
    patterns: list[str] = []
    if exclude is not None:
        try:
            lines = exclude.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CohortError(f"{exclude}: cannot be read: {error}") from error
        patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    forced = None if reader == "auto" else reader
    if part is not None:
        from eosin.fleet import exclude_each_other, part_of
        from eosin.slides.index import index_part

        exclude_each_other("--part", ray=ray, strict=strict, fresh=fresh, html=html, geojson=geojson)
        index_part(
            paths,
            out,
            part_of(part),
            metadata,
            mpp_csv,
            workers,
            patterns,
            forced,
            foreground,
            annotations,
            annotation_class or (),
        )
        return
    Cohort.index(
        paths,
        out,
        metadata,
        mpp_csv,
        workers,
        patterns,
        strict,
        fresh,
        html,
        forced,
        foreground=foreground,
        annotations=annotations,
        annotation_classes=annotation_class or (),
        geojson=geojson,
        ray=ray,
        verbose=verbose,
    )
