"""Indexing: read every slide once and write a cohort, in parallel and resumably.

A slide that cannot be read, and even one that kills the process that reads it, becomes a row with status
`error`. Rows are journalled beside the output as they are made; a rerun keeps those whose file (path, size,
time) and stated µm/px are the same, from the journal and from the finished cohort. Errors are tried again. A part
of the slides (`index_part`) only fills its journal; indexing all of them joins what the parts made.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from eosin.errors import CohortError, OutputError, SlideError, StoreDown
from eosin.files import PathLike, check_writable
from eosin.progress import progress_bar, say
from eosin.provenance import file_identity, hash_of
from eosin.slides.annotations import DEFAULT_CHOICE, ForegroundChoice, choose_foregrounds, write_annotations
from eosin.slides.cohort import Cohort
from eosin.slides.cohort_file import COLUMNS, row_digest, write_rows
from eosin.slides.journal import KnownRows, journal_path
from eosin.slides.listing import find_slides, match_names, name_slides, read_metadata, read_mpp
from eosin.slides.page import write_page
from eosin.slides.reader import Slide, open_slide
from eosin.slides.uri import is_uri

ROW_VERSION = 2  # raised when the same file would give another row; foreground rules have their own
THUMBNAIL_PX = 512
_SHOWN_ERRORS = 20

Row = dict[str, Any]


class Job(NamedTuple):
    """One slide to read; `key` pins the file and what was stated of it. reader: forced, None for the best one."""

    slide_id: str
    path: str
    mpp: float | None
    key: str
    reader: str | None = None
    foreground: ForegroundChoice = DEFAULT_CHOICE


def index_slides(
    paths: Sequence[PathLike],
    out: PathLike,
    metadata: PathLike | None = None,
    mpp_csv: PathLike | None = None,
    workers: int | None = None,
    exclude: Sequence[str] = (),
    strict: bool = False,
    fresh: bool = False,
    html: PathLike | None = None,
    reader: str | None = None,
    foreground: str = "density",
    annotations: PathLike | None = None,
    annotation_classes: Sequence[str] = (),
    geojson: PathLike | None = None,
    ray: str | None = None,
    verbose: bool = False,
) -> Cohort:
    """Index slides into the cohort file `out`.

    Args:
        paths: files, folders (searched through) and glob patterns.
        out: the Parquet file to write.
        metadata: CSV with a column `slide` (file name or slide_id); its other columns become the cohort's.
        mpp_csv: CSV with columns slide,mpp (or wsi,mpp): the µm per level-0 px of slides that do not say it.
        workers: processes; None for one a core, 0 to read in this process.
        exclude: file names, slide_ids or patterns to leave out.
        strict: refuse if any slide fails.
        fresh: read all slides again.
        html: where to write a page with thumbnails, tissue outlines and numbers.
        reader: "openslide" to read all slides through OpenSlide; None for the quickest reader of each.
        foreground: the rule that finds tissue: "density", "any-stain", "clam" or "otsu".
        annotations: folder of GeoJSON (`eosin.slides.annotations`), one file a slide, which goes before the rule.
        annotation_classes: the classes of annotation that count as foreground; empty for all.
        geojson: folder to write the foreground of every usable slide to, for QuPath.
        ray: read on a Ray cluster (`eosin.fleet.fleet`): local, auto, HOST:PORT or ray://HOST:PORT; `workers` is then
            the number of processes, None for one a core of the cluster. verbose: with Ray's own log.

    Raises:
        CohortError: nothing to index, or names that match two slides; once the cohort is written: no usable slide,
            or with `strict` any failed one.
        OutputError: `out` cannot be written.
        FleetError: `ray` cannot be used.
    """
    target, jobs, own_of = _jobs(
        paths, out, metadata, mpp_csv, exclude, reader, foreground, annotations, annotation_classes, geojson
    )
    _check_target(target, [job.path for job in jobs])
    with KnownRows(target, fresh) as rows:
        _read_missing(jobs, rows, target, workers, ray, verbose)
        _write(target, jobs, rows, own_of)
        rows.finish()
    cohort = Cohort.read(target)
    if html is not None:
        write_page(cohort, html)
    if geojson is not None:
        write_annotations(cohort, geojson)
    _tell(cohort, strict)
    return cohort


def index_part(
    paths: Sequence[PathLike],
    out: PathLike,
    part: tuple[int, int],
    metadata: PathLike | None = None,
    mpp_csv: PathLike | None = None,
    workers: int | None = None,
    exclude: Sequence[str] = (),
    reader: str | None = None,
    foreground: str = "density",
    annotations: PathLike | None = None,
    annotation_classes: Sequence[str] = (),
) -> tuple[int, int]:
    """Read part `part` = (number from 1, of how many) of the slides into a journal beside `out`; (good, failed) slides.

    Every n-th slide in order of path, so parts are the same whoever asks. `index_slides` with the same words joins what
    the parts made: it reads what is missing and tries errors again. Other words and errors: see there.
    """
    target, jobs, _ = _jobs(
        paths, out, metadata, mpp_csv, exclude, reader, foreground, annotations, annotation_classes, None, part
    )
    with KnownRows(target, part=part) as rows:
        _read_missing(jobs, rows, target, workers, None, False)
        failed = [str(rows.row(job.key)["error"]) for job in jobs if not rows.digest(job.key)]
    good = len(jobs) - len(failed)
    _tell_errors(failed, "told of when all parts are joined")
    counts = f"{_count(len(jobs), 'slide')}, {good} ok, {_count(len(failed), 'error')}"
    say(
        f"part {part[0]} of {part[1]}: {counts}, kept in {journal_path(target, part)}; after all parts: "
        "the same command without --part"
    )
    return good, len(failed)


def _jobs(
    paths: Sequence[PathLike],
    out: PathLike,
    metadata: PathLike | None,
    mpp_csv: PathLike | None,
    exclude: Sequence[str],
    reader: str | None,
    foreground: str,
    annotations: PathLike | None,
    annotation_classes: Sequence[str],
    geojson: PathLike | None,
    part: tuple[int, int] | None = None,
) -> tuple[Path, list[Job], dict[str, Row]]:
    """The file to write, what is to be read (of a part: its slides), and the user's columns by slide_id."""
    target = Path(out)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; name the Parquet file, e.g. {target / 'cohort.parquet'}")
    check_writable(target.parent)
    stated_mpp = read_mpp(mpp_csv)
    own = read_metadata(metadata, taken=[name for name in COLUMNS if name not in ("patient", "site", "stain")])
    identities: dict[str, dict[str, int | str]] = {}
    slides = name_slides(find_slides(paths, exclude, set(stated_mpp), identities))
    mpp_of = match_names(stated_mpp, slides, mpp_csv)
    own_of = match_names(own, slides, metadata)
    choice_of = choose_foregrounds(slides, foreground, annotations, annotation_classes, geojson)
    taken = list(slides.items())[part[0] - 1 :: part[1]] if part else list(slides.items())
    jobs = [
        _job(slide_id, path, mpp_of.get(slide_id), reader, identities.get(path), choice_of[slide_id])
        for slide_id, path in taken
    ]
    return target, jobs, own_of


def _read_missing(
    jobs: Sequence[Job], rows: KnownRows, target: Path, workers: int | None, ray: str | None, verbose: bool
) -> None:
    """Read the slides of which no row is known."""
    todo = [job for job in jobs if job.key not in rows]
    if not todo:
        return
    if ray is None:
        read = read_all(todo, workers)
    else:
        from eosin.slides.index_fleet import read_on_fleet

        read = read_on_fleet(todo, ray, target.parent, workers, verbose)
    with closing(read), progress_bar("index", len(jobs), "slides", len(jobs) - len(todo)) as bar:
        for job, row in read:
            rows.note(job.key, row)
            bar.advance(1)


def _check_target(target: Path, slides: Iterable[PathLike]) -> None:
    """The cohort file must be a new one or an earlier cohort; says which of its slides are not among the given ones."""
    if not target.exists():
        return
    try:
        known = Cohort.read(target).table["path"]
    except CohortError as error:
        raise OutputError(f"{target} is there and is not a cohort; give another -o") from error
    given = {os.fspath(path) for path in slides}
    left = [path for path in known if path not in given]
    if left:  # resolving asks the file system, so only where names differ
        given = {str(Path(path).resolve()) for path in given}
        left = [path for path in left if str(Path(path).resolve()) not in given]
    if left:
        say(f"{target}: {_count(len(left), 'slide')} of the earlier cohort not given now, left out, first {left[0]}")


def read_all(jobs: Sequence[Job], workers: int | None) -> Generator[tuple[Job, Row], None, None]:
    """Rows of all jobs, as they come."""
    if workers == 0:
        yield from ((job, read_slide(job)) for job in jobs)
        return
    workers = min(workers or _cores(), max(len(jobs), 1))
    waiting = list(reversed(jobs))
    while waiting:
        suspects: list[Job] = []
        yield from _read_until_a_crash(waiting, workers, suspects)
        for job in suspects:  # a pool does not say which of its slides killed it: each is tried alone
            alone, crashed = [job], list[Job]()
            yield from _read_until_a_crash(alone, 1, crashed)
            if crashed:
                yield job, crash_row(job)


def _read_until_a_crash(waiting: list[Job], workers: int, suspects: list[Job]) -> Iterator[tuple[Job, Row]]:
    """Take jobs from the end of `waiting`; after a crash `suspects` holds those that were under way."""
    running: dict[Future[Row], Job] = {}
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        while waiting or running:
            while waiting and len(running) < 2 * workers:
                job = waiting.pop()
                try:
                    running[pool.submit(read_slide, job)] = job
                except BrokenProcessPool:
                    waiting.append(job)
                    break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    yield job, future.result()
                except BrokenProcessPool:
                    suspects.append(job)
            if suspects:
                suspects.extend(running.values())
                return


def read_slide(job: Job) -> Row:
    """The row of one slide, with its `digest`; an error row where it cannot be read.

    A slide that eosin's own reader opens and then fails on is tried with OpenSlide, which forgives more.
    """
    opened = None
    try:
        with open_slide(job.path, job.mpp, job.reader) as slide:
            if slide.damage:
                return _error_row(job, f"{job.path}: {slide.damage}; copy it again")
            opened = slide.reader
            return _describe(slide, job)
    except (SlideError, StoreDown) as error:
        refused = _error_row(job, str(error))
    except Exception as error:  # a broken file must not end the indexing of the others
        refused = _error_row(job, f"{job.path}: {type(error).__name__}: {error}")
    if opened == "tiff" and job.reader is None and not is_uri(job.path):
        again = read_slide(job._replace(reader="openslide"))
        return again if again["status"] == "ok" else refused
    return refused


def _describe(slide: Slide, job: Job) -> Row:
    for share in (0.5, 1.0):  # a truncated file often opens, and fails where its bytes end
        slide.region(share * (slide.width - 64), share * (slide.height - 64), 64, slide.mpp, whole_tiles=True)
    found, rule = job.foreground.find(slide)
    overview, _ = slide.overview(THUMBNAIL_PX)
    row = _error_row(job, None) | {
        "vendor": slide.vendor,
        "reader": slide.reader,
        "width": slide.width,
        "height": slide.height,
        "mpp_x": slide.mpp_x,
        "mpp_y": slide.mpp_y,
        "levels": len(slide.levels),
        "tissue_mm2": found.mm2,
        "foreground": _encode(".png", found.mask.astype(np.uint8) * 255, cv2.IMWRITE_PNG_BILEVEL, 1),
        "foreground_mpp": found.mpp,
        "foreground_rule": rule,
        "thumbnail": _encode(".jpg", overview[..., ::-1], cv2.IMWRITE_JPEG_QUALITY, 85),
        "status": "ok",
    }
    return row | {"digest": row_digest(row, found.mask)}


def crash_row(job: Job) -> Row:
    """The row of a slide that takes the process that reads it down."""
    return _error_row(job, f"{job.path}: the process that read it crashed; the file may be damaged")


def _error_row(job: Job, error: str | None) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    line = None if error is None else " ".join(error.split())
    return row | {"slide_id": job.slide_id, "path": job.path, "status": "error", "error": line, "digest": ""}


def _encode(kind: str, pixels: np.ndarray, *settings: int) -> bytes:
    return bytes(cv2.imencode(kind, pixels, settings)[1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _job(
    slide_id: str,
    path: str,
    mpp: float | None,
    reader: str | None,
    identity: dict[str, int | str] | None,
    choice: ForegroundChoice,
) -> Job:
    """identity: of a slide in an object store; a file is asked for its own."""
    pinned = file_identity(path) if identity is None else identity
    key = hash_of([ROW_VERSION, slide_id, path, pinned, mpp, reader, choice.pin])
    return Job(slide_id, path, mpp, key, reader, choice)


def _write(target: Path, jobs: Sequence[Job], rows: KnownRows, own: dict[str, Row]) -> None:
    extra = list(dict.fromkeys(name for row in own.values() for name in row if name not in COLUMNS))
    columns = {name: [own.get(job.slide_id, {}).get(name) for job in jobs] for name in extra}
    table = pd.DataFrame(columns, index=range(len(jobs)), dtype=object).infer_objects()

    def made() -> Iterator[Row]:
        yield from (rows.row(job.key) | own.get(job.slide_id, {}) for job in jobs)
        rows.close()  # the earlier cohort is about to be replaced, which Windows does not do while it is open

    write_rows(target, made(), table, [rows.digest(job.key) for job in jobs], [job.key for job in jobs])


def _tell(cohort: Cohort, strict: bool) -> None:
    """Say what failed and how many; refuse where too much did."""
    failed = cohort.table[cohort.table["status"] != "ok"]
    _tell_errors(failed["error"].tolist(), f"in column `error` of {cohort.path}")
    empty = int((cohort.usable["tissue_mm2"] == 0).sum())
    counts = f"{_count(len(cohort.table), 'slide')}: {len(cohort)} ok, {_count(len(failed), 'error')}"
    say(counts + (f" ({empty} ok without tissue)" if empty else ""))
    if len(cohort) == 0:
        raise CohortError(f"{cohort.path}: no slide is usable; see its column `error`")
    if strict and len(failed):
        raise CohortError(f"{cohort.path}: {len(failed)} of {len(cohort.table)} slides failed (--strict)")


def _tell_errors(lines: Sequence[str], where: str) -> None:
    for line in lines[:_SHOWN_ERRORS]:
        say(f"error: {line}")
    if len(lines) > _SHOWN_ERRORS:
        say(f"error: … and {len(lines) - _SHOWN_ERRORS} more, {where}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
