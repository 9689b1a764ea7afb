"""A named hidden behaviour that a protocol has on or off. The tables of them lie beside the settings they change."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Settings = dict[str, Any]
Watch = Literal["reported", "inner"]


class Switch(NamedTuple):
    """A behaviour of eva that its documents omit or get wrong: what it is, and the settings with and without it.

    `watch`, where given: what best checkpoints are chosen on without it.
    """

    about: str
    on: Settings
    off: Settings
    watch: Watch | None = None
