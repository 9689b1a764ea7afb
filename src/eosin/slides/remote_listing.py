"""Which slides lie below a URI, and what pins each without reading it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from eosin.errors import CohortError, SlideError, StoreDown
from eosin.slides import remote
from eosin.slides.uri import Uri

_WILD = re.compile(r"[*?[]")

Identity = dict[str, int | str]


def find_remote(path: str, suffixes: frozenset[str]) -> dict[str, Identity]:
    """The slides that a URI stands for: itself, all below `s3://bucket/folder/`, or what a pattern matches.

    Of a folder, those with the suffix of a slide, whose names do not begin with a dot. Returns URI to identity.
    CohortError where there are none, or the store cannot be asked.
    """
    try:
        uri = Uri.parse(path)
        if uri.query:
            raise CohortError(
                f"{uri}: the query of a URL may be a signature and expires, so it is not written into a cohort; give "
                "the s3:// or gs:// URI, with credentials from the environment"
            )
        wild = _WILD.search(uri.key) if uri.lists else None
        if wild:
            found = _listed(uri.below(uri.key[: wild.start()]))
            return _some({name: at for name, at in found.items() if _matches(name, str(uri))}, uri)
        if uri.lists and (not uri.key or uri.key.endswith("/")):
            return _some({name: at for name, at in _listed(uri).items() if _is_slide(name, suffixes)}, uri)
        if not uri.key or uri.key.endswith("/"):
            raise CohortError(f"{uri}: what lies below https:// cannot be listed; name the files")
        return {str(uri): _identity(uri, remote.read_range(uri, 0, 1, None)[1])}
    except (SlideError, StoreDown) as error:
        raise CohortError(str(error)) from error


def _listed(uri: Uri) -> dict[str, Identity]:
    return {str(found): _identity(found, known) for found, known in remote.listed(uri) if found.key[-1:] != "/"}


def _identity(uri: Uri, known: remote.Known) -> dict[str, Any]:
    return {"name": PurePosixPath(uri.key).name, "bytes": known.size, "mark": known.mark}


def _is_slide(name: str, suffixes: frozenset[str]) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in suffixes and not any(part.startswith(".") for part in path.parts)


def _matches(name: str, pattern: str) -> bool:
    """Part by part, as a shell does; `**` stands for any folders."""
    return _match(name.split("/"), pattern.split("/"))


def _match(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_match(parts[skip:], pattern[1:]) for skip in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _match(parts[1:], pattern[1:])


def _some(found: dict[str, Identity], uri: Uri) -> dict[str, Identity]:
    if not found:
        raise CohortError(f"{uri}: no slides there")
    return found
