"""Indexing: read every slide once and write a cohort, in parallel and resumably.

A slide that cannot be read, and even one that kills the process that reads it, becomes a row with status
`error`. Rows are journalled beside the output as they are made; a rerun keeps those whose file (path, size,
time) and stated µm/px are the same, from the journal and from the finished cohort. Errors are tried again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pandas as pd

from eosin.errors import CohortError, OutputError, SlideError
from eosin.files import PathLike, check_writable
from eosin.progress import progress_bar, say
from eosin.provenance import file_identity, hash_of
from eosin.slides.cohort import COLUMNS, Cohort, row_digest, write_cohort
from eosin.slides.foreground import find_foreground
from eosin.slides.journal import Journal, rows_of
from eosin.slides.listing import find_slides, match_names, name_slides, read_metadata, read_mpp
from eosin.slides.page import write_page
from eosin.slides.reader import Slide, open_slide

ROW_VERSION = 2  # raised when the same file would give another row: foreground rule, reader
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

    Raises:
        CohortError: nothing to index, no usable slide, with `strict` any failed slide, or names that match
        two slides.
            The cohort is written before it tells of slides.
        OutputError: `out` cannot be written.
    """
    target = Path(out)
    if target.is_dir():
        raise OutputError(f"{target} is a folder; name the Parquet file, e.g. {target / 'cohort.parquet'}")
    check_writable(target.parent)
    stated_mpp = read_mpp(mpp_csv)
    own = read_metadata(metadata, taken=[name for name in COLUMNS if name not in ("patient", "site", "stain")])
    slides = name_slides(find_slides(paths, exclude, set(stated_mpp)))
    _check_target(target, slides.values())
    mpp_of = match_names(stated_mpp, slides, mpp_csv)
    own_of = match_names(own, slides, metadata)
    jobs = [_job(slide_id, path, mpp_of.get(slide_id), reader) for slide_id, path in slides.items()]

    rows = {} if fresh else rows_of(target)
    todo = [job for job in jobs if job.key not in rows]
    with Journal(target, fresh) as journal:
        with progress_bar("index", len(jobs), "slides") as bar:
            bar.advance(len(jobs) - len(todo))
            for job, row in read_all(todo, workers):
                rows[job.key] = row
                journal.note(job.key, row)
                bar.advance(1)
        _write(target, jobs, rows, own_of)
        journal.finish()
    cohort = Cohort.read(target)
    if html is not None:
        write_page(cohort, html)
    _tell(cohort, strict)
    return cohort


def _check_target(target: Path, slides: Iterable[PathLike]) -> None:
    """The cohort file must be a new one or an earlier cohort; says which of its slides are not among the given ones."""
    if not target.exists():
        return
    try:
        known = Cohort.read(target).table["path"]
    except CohortError as error:
        raise OutputError(f"{target} is there and is not a cohort; give another -o") from error
    given = {str(Path(path).resolve()) for path in slides}
    if left := [path for path in known if str(Path(path).resolve()) not in given]:
        say(f"{target}: {_count(len(left), 'slide')} of the earlier cohort not given now, left out, first {left[0]}")


def read_all(jobs: Sequence[Job], workers: int | None) -> Iterator[tuple[Job, Row]]:
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
                yield (
                    job,
                    _error_row(job, f"{job.path}: the process that read it crashed; the file may be damaged"),
                )


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
    except SlideError as error:
        refused = _error_row(job, str(error))
    except Exception as error:  # a broken file must not end the indexing of the others
        refused = _error_row(job, f"{job.path}: {type(error).__name__}: {error}")
    if opened == "tiff" and job.reader is None:
        again = read_slide(job._replace(reader="openslide"))
        return again if again["status"] == "ok" else refused
    return refused


def _describe(slide: Slide, job: Job) -> Row:
    for share in (0.5, 1.0):  # a truncated file often opens, and fails where its bytes end
        slide.region(share * (slide.width - 64), share * (slide.height - 64), 64, slide.mpp)
    found = find_foreground(slide)
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
        "thumbnail": _encode(".jpg", overview[..., ::-1], cv2.IMWRITE_JPEG_QUALITY, 85),
        "status": "ok",
    }
    return row | {"digest": row_digest(row, found.mask)}


def _error_row(job: Job, error: str | None) -> Row:
    row: Row = dict.fromkeys(COLUMNS)
    line = None if error is None else " ".join(error.split())
    return row | {"slide_id": job.slide_id, "path": job.path, "status": "error", "error": line, "digest": ""}


def _encode(kind: str, pixels: np.ndarray, *settings: int) -> bytes:
    return bytes(cv2.imencode(kind, pixels, settings)[1])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _job(slide_id: str, path: str, mpp: float | None, reader: str | None) -> Job:
    return Job(slide_id, path, mpp, hash_of([ROW_VERSION, slide_id, path, file_identity(path), mpp, reader]), reader)


def _write(target: Path, jobs: Sequence[Job], rows: dict[str, Row], own: dict[str, Row]) -> None:
    made = [rows[job.key] | own.get(job.slide_id, {}) for job in jobs]
    extra = list(dict.fromkeys(name for row in own.values() for name in row if name not in COLUMNS))
    table = pd.DataFrame({name: [row.get(name) for row in made] for name in [*COLUMNS, *extra]}, dtype=object)
    for name in extra:
        table[name] = table[name].infer_objects()
    write_cohort(target, table, [row["digest"] for row in made], [job.key for job in jobs])


def _tell(cohort: Cohort, strict: bool) -> None:
    """Say what failed and how many; refuse where too much did."""
    failed = cohort.table[cohort.table["status"] != "ok"]
    for line in failed["error"].head(_SHOWN_ERRORS):
        say(f"error: {line}")
    if len(failed) > _SHOWN_ERRORS:
        say(f"error: … and {len(failed) - _SHOWN_ERRORS} more, in column `error` of {cohort.path}")
    empty = int((cohort.usable["tissue_mm2"] == 0).sum())
    counts = f"{_count(len(cohort.table), 'slide')}: {len(cohort)} ok, {_count(len(failed), 'error')}"
    say(counts + (f" ({empty} ok without tissue)" if empty else ""))
    if len(cohort) == 0:
        raise CohortError(f"{cohort.path}: no slide is usable; see its column `error`")
    if strict and len(failed):
        raise CohortError(f"{cohort.path}: {len(failed)} of {len(cohort.table)} slides failed (--strict)")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
