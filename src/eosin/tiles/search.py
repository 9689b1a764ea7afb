"""The search for one tile: position after position, until one can be read and passes the filters.

A tile that fails the HSV rule or cannot be read is redrawn on the same slide and µm/px up to `REDRAWS` times, then on
another slide; a slide that cannot be opened is left at once. The searches of one visit go side by side, so that what
they want of one place is read together.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

from eosin.errors import EosinError, PlanError, RegionError, SlideError, SlideGone, StoreDown
from eosin.randomness import Words
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels, hsv_share
from eosin.tiles.source import REDRAWS, Address, Rejection, Source, Tile

MOST_SLIDES = 64  # slides tried for one tile before the plan gives up
READ_TRIES = 3  # a transient read error is retried

T = TypeVar("T")


class Visit:
    """Where the slots of one visit look, attempt by attempt. Without visits, a tile is its own."""

    def __init__(self, source: Source, which: int, seed: int, number: int, spread: bool) -> None:
        """which: number of the source in its plan. spread: whether the plan has visits of several tiles."""
        self.source = source
        self._which, self._seed, self._number = which, seed, number
        self._shared, self._alone = spread and source.wide, spread and not source.wide
        self._places: dict[int, Address] = {}
        self._slots: dict[int, list[Address] | EosinError] = {}

    def tiles(
        self, slots: Sequence[int], indices: Sequence[int], known_errors: Mapping[tuple[int, int], int]
    ) -> list[Tile]:
        """The tiles of some of its slots, whose numbers are `indices`; what they share is read once.

        known_errors: see `TilePlan.tile`. Raises PlanError where nothing passes, StoreDown.
        """
        searches = [_search(self, slot, index, known_errors) for slot, index in zip(slots, indices, strict=True)]
        found: dict[int, Tile] = {}
        wanted: dict[int, _Wanted] = {}
        for number, search in enumerate(searches):
            _advance(search, None, number, wanted, found)
        while wanted:
            attempt = min(one.attempt for one in wanted.values())
            group = [number for number, one in wanted.items() if one.attempt == attempt]
            answers = _read(self.source, [wanted.pop(number).address for number in group])
            for number, answer in zip(group, answers, strict=True):
                _advance(searches[number], answer, number, wanted, found)
        return [found[number] for number in range(len(searches))]

    def place(self, attempt: int, index: int) -> Address:
        """The drawn place. index: number of the tile, which has a place of its own in sources that are not `wide`."""
        if self._alone:
            return self.source.draw(self._seed, self._which, index, attempt)
        if attempt not in self._places:
            self._places[attempt] = self.source.draw(self._seed, self._which, self._number, attempt)
        return self._places[attempt]

    def slot(self, place: Address, attempt: int, slot: int) -> Address:
        """The slot's own address there. Raises SlideError, StoreDown."""
        if not self._shared:
            return place
        if attempt not in self._slots:
            self._slots[attempt] = self._around(place, attempt)
        found = self._slots[attempt]
        if isinstance(found, EosinError):
            raise found
        return found[slot]

    def _around(self, place: Address, attempt: int) -> list[Address] | EosinError:
        words = Words(self._seed, "slots", self._number, attempt)
        try:
            return _retried(lambda: self.source.around(place, words))
        except EosinError as error:
            return error


class _Wanted(NamedTuple):
    """What a search has to know next."""

    attempt: int
    address: Address


_Answer = Pixels | EosinError
_Search = Generator[_Wanted, _Answer, Tile]


def _advance(
    search: _Search, answer: _Answer | None, number: int, wanted: dict[int, _Wanted], found: dict[int, Tile]
) -> None:
    """Let a search go on; it ends up among the `wanted` or the `found`."""
    try:
        wanted[number] = next(search) if answer is None else search.send(answer)
    except StopIteration as end:
        found[number] = end.value


def _search(visit: Visit, slot: int, index: int, known_errors: Mapping[tuple[int, int], int]) -> _Search:
    """Looks for tile `index`: yields the address to read next, is sent its pixels or why there are none."""
    source = visit.source
    least = source.config.hsv_share
    failed = _Failures()
    attempt = 0
    while attempt < REDRAWS * MOST_SLIDES:
        next_slide = (attempt // REDRAWS + 1) * REDRAWS
        if (index, attempt) in known_errors:
            failed.unreadable += 1
            attempt = known_errors[index, attempt]
            continue
        address = visit.place(attempt, index)
        if address.nowhere:
            failed.add(address, "place")
            attempt = next_slide
            continue
        try:
            address = visit.slot(address, attempt, slot)
            pixels = yield _Wanted(attempt, address)
        except StoreDown:  # says nothing of the slide: another tile in its place would be wrong
            raise
        except EosinError as error:
            pixels = error
        if isinstance(pixels, EosinError):
            following = next_slide if isinstance(pixels, SlideGone) else attempt + 1
            failed.add(address, "read")
            entry = {"i": index, "attempt": attempt, "next": following, "slide": address.name, "error": str(pixels)}
            failed.errors.append(entry)
            attempt = following
        elif least is None or hsv_share(pixels) >= least:
            return Tile(index, pixels, address, failed.names, failed.errors)
        else:
            failed.add(address, "hsv")
            attempt += 1
    raise PlanError(failed.told(source.config))


@dataclass
class _Failures:
    """What failed on the way to one tile."""

    unreadable: int = 0
    names: list[Rejection] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, address: Address, why: str) -> None:
        """A try that gave nothing."""
        self.names.append(Rejection(address.name, address.mpp, why))

    def told(self, config: TilesConfig) -> str:
        """The line for a plan that finds nothing."""
        counts = Counter(rejection.why for rejection in self.names)
        unreadable = self.unreadable + counts["read"]
        line = f"no tile passes after {self.unreadable + len(self.names)} tries: {counts['place']} times no place "
        line += f"with {config.min_foreground:.0%} foreground, {counts['hsv']} times the HSV rule "
        line += f"({config.hsv_share}), {unreadable} times a read error"
        if 2 * unreadable > self.unreadable + len(self.names):
            last = f" ({self.errors[-1]['error']})" if self.errors else ""
            return f"{line}{last}; if slides have moved, run `eosin index` again"
        return f"{line}; loosen tiles.min_foreground or tiles.hsv_share"


def _read(source: Source, addresses: list[Address]) -> list[_Answer]:
    """Pixels of each address, or why there are none: what cannot be read together is read one by one."""
    if len(addresses) > 1:
        try:
            return list(source.read(addresses))
        except StoreDown:
            raise
        except EosinError:
            pass  # damage between them is no fault of theirs
    answers: list[_Answer] = []
    for address in addresses:
        try:
            answers.append(_retried(lambda address=address: source.read([address]))[0])  # type: ignore[misc]
        except StoreDown:
            raise
        except EosinError as error:
            answers.append(error)
    return answers


def _retried(work: Callable[[], T]) -> T:
    for number in range(READ_TRIES):
        try:
            return work()
        except RegionError:
            raise
        except SlideError:
            if number == READ_TRIES - 1:
                raise
            time.sleep(0.01 * 4**number)
    raise AssertionError("unreachable")
