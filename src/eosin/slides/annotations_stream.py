"""Features of a GeoJSON file one at a time: memory depends on the largest feature, not on the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from eosin.errors import SlideError

LARGEST_FEATURE = 1 << 25  # characters: an outline of about two million points
_CHUNK = 1 << 20
_SPACE = " \t\r\n"
_USED = ("type", "geometry", "properties", "coordinates", "crs")  # of what stands around the features


def features_of(path: Path) -> Iterator[dict[str, Any]]:
    """Features (or bare geometries) of a FeatureCollection, a list, a single feature or a geometry, in order.

    Raises SlideError, in one line, where the file cannot be read, is not GeoJSON, has a feature of more than
    32 million characters, or states geographic coordinates.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield from _features(_Text(file), path)
    except OSError as error:
        raise SlideError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise SlideError(f"{path}: not GeoJSON: not UTF-8 text") from error
    except RecursionError as error:
        raise SlideError(f"{path}: not GeoJSON: nested without end") from error
    except ValueError as error:  # of which JSONDecodeError is one; a number of 5,000 digits is another
        raise SlideError(f"{path}: not GeoJSON, or cut short: {error}") from error


class _Text:
    """JSON text read in chunks: whole values are taken off its front."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._ended = False
        self._decoder = json.JSONDecoder(parse_constant=_refuse)

    def peek(self) -> str:
        """The next character that is no space; empty at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more()

    def take(self, wanted: str) -> None:
        """Step over one character, which has to be among `wanted`."""
        found = self.peek()
        if not found or found not in wanted:
            raise ValueError(f"{found or 'the end'} where {' or '.join(wanted)} belongs")
        self._at += 1

    def value(self) -> Any:
        """Take the next value whole."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
                if end < len(self._text) or self._ended:  # else a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._ended:
                    raise ValueError(error.msg) from error
            if len(self._text) - self._at > LARGEST_FEATURE:
                raise ValueError(f"one value has more than {LARGEST_FEATURE} characters")
            self._more()

    def _more(self) -> None:
        """Read as much again as is held, so that a long value is scanned few times."""
        self._text = self._text[self._at :]
        self._at = 0
        read = self._file.read(max(_CHUNK, len(self._text)))
        self._ended = not read
        self._text += read


def _features(text: _Text, path: Path) -> Iterator[dict[str, Any]]:
    if text.peek() == "[":
        yield from _elements(text)
    else:
        text.take("{")
        head: dict[str, Any] = {}
        streamed = False
        while text.peek() != "}":
            name = text.value()
            text.take(":")
            if name == "features" and text.peek() == "[":
                streamed = True
                yield from _elements(text)
            else:
                value = text.value()
                if name in _USED:
                    head[name] = value
                if name == "crs":
                    _check_reference(value, path)
            if text.peek() != "}":
                text.take(",")
        text.take("}")
        if not streamed:
            yield head
    if text.peek():
        raise ValueError("more text after its end")


def _elements(text: _Text) -> Iterator[dict[str, Any]]:
    text.take("[")
    while text.peek() != "]":
        feature = text.value()
        if not isinstance(feature, dict):
            raise ValueError(f"a feature is no object: {str(feature)[:40]}")
        yield feature
        if text.peek() != "]":
            text.take(",")
    text.take("]")


def _check_reference(reference: Any, path: Path) -> None:
    """Refuse degrees. Other names are passed over: programs write any into files that are in px."""
    name = json.dumps(reference)
    if any(geographic in name for geographic in ("CRS84", "4326", "4979")):
        raise SlideError(f"{path}: coordinates in degrees ({name[:80]}); wanted are px of the slide's level 0")


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")
