"""Indexing on a Ray cluster: a slide is a unit of work, its row comes back to the driver's journal."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path

import cv2

from eosin.fleet import Lost, fleet, same_place
from eosin.slides.index import Job, Row, crash_row, read_slide
from eosin.slides.uri import is_uri

_SAMPLE = 3


def read_on_fleet(
    jobs: Sequence[Job], address: str, folder: Path, workers: int | None, verbose: bool
) -> Generator[tuple[Job, Row], None, None]:
    """Rows of all jobs, as they come; `workers` processes, None for one a core of the cluster.

    A slide that takes down every process that reads it becomes an error row. Raises FleetError where the cluster cannot
    be used: not there, other versions, `folder`, slides or annotations not visible to a machine.
    """
    some = jobs[:: max(len(jobs) // _SAMPLE, 1)]
    files = [job.path for job in some if not is_uri(job.path)]
    files += [job.foreground.file for job in jobs if job.foreground.file][:_SAMPLE]
    with fleet(address, workers or None, verbose) as ships, same_place(folder, files) as place:
        count = min(workers or ships.room(), len(jobs))
        with closing(ships.each(jobs, _reader, place, count)) as results:
            for job, row in results:
                yield job, crash_row(job) if isinstance(row, Lost) else row


def _reader() -> Callable[[Job], Row]:
    cv2.setNumThreads(1)
    return read_slide
