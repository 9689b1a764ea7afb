"""Slides that lie in an object store or behind a web server, by name: `s3://`, `gs://`, `https://`.

A URI names a file and nothing else. It is not trusted: schemes other than these, credentials in it and ways out of
its folder are refused before anything is asked of a network, and no error line shows more of it than where it points.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from eosin.errors import SlideError
from eosin.files import PathLike

ALLOW_HTTP = "EOSIN_ALLOW_HTTP"
_BUCKETS = ("s3", "gs")
_SCHEMES = (*_BUCKETS, "https", "http")
_LONGEST = 4096
_SAFE = "/!$&'()*+,;=:@~"  # what a path of a URL may hold as it is

# `Path("s3://a/b")` and what a command line makes of it is "s3:/a/b"
_START = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}")


class RemotePath(type(Path())):  # type: ignore[misc]  # until Python 3.12 a path of a system is what can be derived from
    """The name of a slide that is no local file: `name`, `stem` and `suffix` as of any path, written as its URI."""

    def __str__(self) -> str:
        scheme, *rest = self.parts
        return f"{scheme.rstrip(':')}://{'/'.join(rest)}"


@dataclass(frozen=True)
class Uri:
    """Where a file lies.

    scheme: s3, gs, https or http. place: bucket, or host with port. key: the object's key, or the path on the host
    with percent signs resolved; no leading slash. query: of https only; it may be a signature, so it is never shown.
    """

    scheme: str
    place: str
    key: str
    query: str = field(default="", repr=False)

    @staticmethod
    def parse(text: PathLike) -> Uri:
        """The URI of a text or path; SlideError where it is none that is read here."""
        text = os.fspath(text)
        start = _START.match(text)
        if start is None:
            raise SlideError(f"{text[:80]}: not a URI")
        scheme = start[1].lower()
        if scheme not in _SCHEMES:
            raise SlideError(f"{scheme}://…: slides are read from {', '.join(f'{name}://' for name in _SCHEMES[:3])}")
        if len(text) > _LONGEST or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise SlideError(f"{scheme}://…: too long, or with control characters in it")
        rest = text[start.end() :]
        uri = _in_bucket(scheme, rest) if scheme in _BUCKETS else _on_host(scheme, rest)
        if any(part in (".", "..") for part in uri.key.split("/")):
            raise SlideError(f"{uri}: '.' and '..' are not resolved in URIs")
        return uri

    @property
    def lists(self) -> bool:
        """Whether what lies below it can be listed."""
        return self.scheme in _BUCKETS

    @property
    def path(self) -> Path:
        """What a slide from there is called where others have a path."""
        return RemotePath(str(self))

    def below(self, key: str) -> Uri:
        """Another object of the same bucket."""
        return Uri(self.scheme, self.place, key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}/{self.key if self.lists else quote(self.key, safe=_SAFE)}"


def is_uri(path: PathLike) -> bool:
    """Whether a path is a URI: it begins with a scheme of two letters or more (one letter is a drive)."""
    return _START.match(os.fspath(path)) is not None


def told_to(variable: str) -> bool:
    """Whether a variable of the environment says yes."""
    return os.environ.get(variable, "").lower() in ("1", "true", "yes", "on")


def _in_bucket(scheme: str, rest: str) -> Uri:
    bucket, _, key = rest.partition("/")
    _refuse_credentials(scheme, bucket)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}", bucket):
        raise SlideError(f"{scheme}://…: not the name of a bucket; write {scheme}://BUCKET/KEY")
    if re.search(r"\?[^/]*=", key):
        raise SlideError(
            f"{scheme}://{bucket}/…: a query is no part of an object's name; credentials come from the environment"
        )
    return Uri(scheme, bucket, key)


def _on_host(scheme: str, rest: str) -> Uri:
    _refuse_credentials(scheme, re.split(r"[/?#]", rest, maxsplit=1)[0])
    try:
        parts = urlsplit(f"{scheme}://{rest}")
    except ValueError:  # brackets that hold no address; its own words would show the query
        raise SlideError(f"{scheme}://…: no host; write {scheme}://HOST/PATH") from None
    if not re.fullmatch(r"[A-Za-z0-9.-]+(:\d{1,5})?|\[[0-9A-Fa-f:.]+\](:\d{1,5})?", parts.netloc):
        raise SlideError(f"{scheme}://…: no host; write {scheme}://HOST/PATH")
    if scheme == "http" and not told_to(ALLOW_HTTP):
        raise SlideError(
            f"http://{parts.netloc}/…: anybody on the way can read and change what comes over http; use https, or set "
            f"{ALLOW_HTTP}=1"
        )
    return Uri(scheme, parts.netloc.lower(), unquote(parts.path.lstrip("/")), parts.query)


def _refuse_credentials(scheme: str, place: str) -> None:
    if "@" in place:
        raise SlideError(
            f"{scheme}://…: a name or password in a URI is refused, since it would be written down with it; "
            "credentials come from the environment"
        )
