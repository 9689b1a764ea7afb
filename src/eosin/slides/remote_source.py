"""Bytes of a slide in an object store: what the TIFF reader reads from, in few requests.

What is asked for together is fetched together: neighbouring ranges as one request, the others at the same time. What
is announced (`prefetch`) waits in memory, bounded, until it is read. Never is more fetched than was asked for and the
small gaps in between, so what lies elsewhere in the file (labels, macro images) stays where it is. Every answer is
held against the size and ETag that the file had when it was opened.
"""

from __future__ import annotations

import itertools
import threading
from bisect import bisect_right
from collections.abc import Sequence

from eosin.errors import SlideError
from eosin.slides import remote
from eosin.slides.tiff_source import Span
from eosin.slides.uri import Uri

GAP = 4096  # bytes between two ranges that are worth fetching to save a request
_HEAD = 16  # bytes: what says that a file is a TIFF
MOST_AT_ONCE = 8 * 2**20  # bytes of one request; more is fetched side by side
MOST_KEPT = 64 * 2**20  # bytes that wait to be read, of one slide
MOST_READ = 256 * 2**20  # bytes of one read; no slide has a tile or a directory of that size


class RemoteBytes:
    """A file in an object store or behind a web server."""

    far = True

    def __init__(self, uri: Uri) -> None:
        """Look at it, for one request of its first bytes. Raises SlideError, StoreDown."""
        self.name = str(uri)
        self._uri = uri
        head, self.known = remote.read_range(uri, 0, _HEAD, None)
        self.size = self.known.size
        self._kept: dict[Span, bytes] = {(0, len(head)): head}
        self._held = len(head)
        self._lock = threading.Lock()
        self._closed = False

    def read(self, spans: Sequence[Span]) -> list[bytes]:
        """See `ByteSource.read`."""
        found = [self._take(span) for span in spans]
        missing = [span for span, data in zip(spans, found, strict=True) if data is None]
        for offset, length in missing:
            if offset + length > self.size:
                raise SlideError(
                    f"{self.name}: truncated or damaged: bytes {offset} to {offset + length} wanted, it has {self.size}"
                )
        fetched = iter(self._fetch(missing) if missing else ())
        return [next(fetched) if data is None else data for data in found]

    def prefetch(self, spans: Sequence[Span]) -> None:
        """See `ByteSource.prefetch`."""
        inside = [(offset, min(length, self.size - offset)) for offset, length in spans]
        with self._lock:
            new = [span for span in dict.fromkeys(inside) if span[1] > 0 and span not in self._kept]
            sums = itertools.accumulate(length for _, length in new)
            new = [span for span, upto in zip(new, sums, strict=True) if upto <= MOST_KEPT]
            if self._held + sum(length for _, length in new) > MOST_KEPT:
                self._forget()
        if new:
            fetched = self._fetch(new)
            with self._lock:
                self._kept.update(zip(new, fetched, strict=True))
                self._held = sum(map(len, self._kept.values()))

    def close(self) -> None:
        """Forget what was fetched; reading afterwards is a SlideError."""
        self._closed = True
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._kept.clear()
        self._held = 0

    def _take(self, span: Span) -> bytes | None:
        """What was fetched before of a span: handed out once where it was announced as such."""
        offset, length = span
        with self._lock:
            data = self._kept.pop(span, None)
            if data is not None:
                self._held -= length
                return data
            if length > GAP:
                return None
            for (start, _), kept in self._kept.items():  # a directory, announced before its length is known
                if start <= offset and offset + length <= start + len(kept):
                    return kept[offset - start : offset - start + length]
        return None

    def _fetch(self, spans: Sequence[Span]) -> list[bytes]:
        """The bytes of spans that lie inside the file."""
        if self._closed:
            raise SlideError(f"{self.name}: cannot be read: it was closed")
        if sum(length for _, length in spans) > MOST_READ:
            raise SlideError(f"{self.name}: damaged: a read of more than {MOST_READ >> 20} MiB")
        runs = merged(spans, GAP)
        parts = [
            (at, min(MOST_AT_ONCE, start + length - at))
            for start, length in runs
            for at in range(start, start + length, MOST_AT_ONCE)
        ]
        pieces = iter(remote.read_ranges(self._uri, parts, self.known))
        whole = [b"".join(itertools.islice(pieces, -(-length // MOST_AT_ONCE))) for _, length in runs]
        found = []
        for offset, length in spans:
            number = bisect_right(runs, offset, key=lambda run: run[0]) - 1
            begin = offset - runs[number][0]
            found.append(whole[number][begin : begin + length])
        return found


def merged(spans: Sequence[Span], gap: int) -> list[Span]:
    """Spans that are not further apart than `gap` bytes as one, in the order of the file."""
    runs: list[Span] = []
    for offset, length in sorted(spans):
        if runs and offset <= sum(runs[-1]) + gap:
            start, before = runs[-1]
            runs[-1] = (start, max(before, offset + length - start))
        else:
            runs.append((offset, length))
    return runs
