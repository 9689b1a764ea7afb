"""Ranges of objects, asked of a store: the one place that speaks to a network.

Stores are reached through obstore, the Python face of Rust's object_store: it signs, keeps connections, and asks
again with growing pauses after 5xx, 429, timeouts and broken connections, also in the middle of an answer. Its threads
do not live on in a forked process, where every call would wait for ever. So a store is opened by the process that
reads, none is carried over, a fork after the first use is told of at once, and `worker_start` says how to start
workers instead. Credentials come from the usual environment of the libraries and from nowhere else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from eosin.errors import EosinError
from eosin.slides.remote_errors import EXTRA, StoreError, StoreUnreachable, changed, told
from eosin.slides.uri import ALLOW_HTTP, Uri, told_to

CONNECTIONS = 16  # a process: what waits for a store costs nothing else
TRIES = 3  # of a range whose answer was cut short, each with the client's own repetitions
CLIENT = {"connect_timeout": "10s", "timeout": "60s"}
RETRIES = {
    "max_retries": 6,
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=10), "base": 2},
    "retry_timeout": timedelta(seconds=150),
}

_process: int | None = None
_lock = threading.Lock()


class Known(NamedTuple):
    """What a store says of an object: its length in bytes, and what changes when it is replaced."""

    size: int
    mark: str

    @property
    def pin(self) -> str | None:
        """The mark, where a request can be bound to it."""
        return self.mark if self.mark.startswith('"') else None


def worker_start() -> str | None:
    """How a process that may have used a store has to start workers that will: "spawn", or None for any way."""
    return "spawn" if _process == os.getpid() else None


def read_range(uri: Uri, start: int, length: int, known: Known | None) -> tuple[bytes, Known]:
    """`length` bytes from `start` on, fewer only where the object ends, and what it is.

    known: what it was when it was opened; where it is another one by now, SlideGone.

    Raises:
        StoreError: there is no such object, or the server does not give ranges.
        StoreDown: the store does not answer, or not to us.
    """
    options: dict[str, Any] = {"range": (start, start + length)}
    if known is not None and known.pin:
        options["if_match"] = known.pin

    def ask() -> tuple[bytes, Known]:
        answer = _obstore().get(_store(uri.scheme, uri.place, uri.query), uri.key, options=options)
        found = _known(answer.meta)
        if known is not None and found != known:
            raise changed(str(uri))
        data, wanted = bytearray(), min(length, found.size - start)
        for part in answer.stream(min_chunk_size=1 << 20):
            data += part
            if len(data) > wanted:  # a server that does not stop
                break
        if len(data) != wanted:
            raise _CutShort(f"{uri}: the server gives {len(data)} bytes where {wanted} were asked for")
        return bytes(data), found

    return _asked(uri, ask)


def read_ranges(uri: Uri, spans: Sequence[tuple[int, int]], known: Known) -> list[bytes]:
    """Several ranges (start, length) at a time."""

    def one(span: tuple[int, int]) -> bytes:
        return read_range(uri, span[0], span[1], known)[0]

    if len(spans) == 1:
        return [one(spans[0])]
    _claim()
    return list(_threads(os.getpid()).map(one, spans))


def listed(uri: Uri) -> Iterator[tuple[Uri, Known]]:
    """All objects whose key begins with the URI's. Raises StoreError, StoreDown."""
    _claim()
    folder = uri.key.rpartition("/")[0]  # the client lists whole folders
    try:
        for page in _obstore().list(_store(uri.scheme, uri.place, ""), folder, chunk_size=1000):
            for found in page:
                if found["path"].startswith(uri.key):
                    yield uri.below(found["path"]), _known(found)
    except EosinError:
        raise
    except Exception as error:  # see `_asked`
        raise told(str(uri), uri.scheme, error) from None


class _CutShort(StoreUnreachable):
    """Fewer or more bytes than were asked for."""


def _asked(uri: Uri, ask: Callable[[], Any]) -> Any:
    """The answer, asked for again where it was cut short; errors become one line."""
    _claim()
    for number in range(TRIES):
        try:
            return ask()
        except _CutShort:
            if number == TRIES - 1:
                raise
        except EosinError:
            raise
        except Exception as error:  # obstore's own classes, OSError, and what a credential provider raises
            raise told(str(uri), uri.scheme, error) from None
        time.sleep(0.05 * 4**number)
    raise AssertionError("unreachable")


def _known(meta: Any) -> Known:
    return Known(meta["size"], meta["e_tag"] or str(meta["last_modified"]))


def _claim() -> None:
    """Note that this process uses stores; a fork of one that did cannot."""
    global _process
    with _lock:
        if _process is None:
            _process = os.getpid()
    if _process != os.getpid():
        raise StoreError(
            "this process was forked from one that had read from an object store, which no fork can go on with; "
            "start worker processes with 'spawn' or 'forkserver'"
        )


def _obstore() -> Any:
    try:
        import obstore
        import obstore.store
    except ImportError as error:
        raise StoreError(f"s3://, gs:// and https:// need more packages: pip install '{EXTRA}'") from error
    return obstore


@lru_cache(maxsize=1)
def _threads(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="eosin-store")


@lru_cache(maxsize=64)
def _store(scheme: str, place: str, query: str) -> Any:
    """The client of a bucket or host."""
    stores = _obstore().store
    plain = {"s3": told_to("AWS_ALLOW_HTTP"), "gs": told_to(ALLOW_HTTP), "https": False, "http": True}
    client = CLIENT | _authority() | {"allow_http": plain[scheme]}  # where it is not, redirects lead to https only
    words: dict[str, Any] = {"client_options": client, "retry_config": RETRIES}
    if scheme == "s3":
        return stores.S3Store(place, **words, **_aws_profile())
    if scheme == "gs":
        return stores.GCSStore(place, **words)
    return stores.HTTPStore.from_url(f"{scheme}://{place}/{f'?{query}' if query else ''}", **words)


def _aws_profile() -> dict[str, Any]:
    """The provider of profiles, SSO and roles of ~/.aws, where the environment does not hold a key itself."""
    if os.environ.get("AWS_ACCESS_KEY_ID") or told_to("AWS_SKIP_SIGNATURE"):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    return {"credential_provider": Boto3CredentialProvider()}


def _authority() -> dict[str, Any]:
    """Certificates that are trusted besides the system's."""
    file = os.environ.get("AWS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    if not file:
        return {}
    try:
        return {"root_certificate": Path(file).read_bytes()}
    except OSError as error:
        raise StoreError(f"AWS_CA_BUNDLE: {file} cannot be read: {error.strerror or error}") from error
