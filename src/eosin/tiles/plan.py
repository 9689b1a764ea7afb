"""TilePlan: tile number i is a function of (seed, i) and of what the run pins by hash.

The µm/px is drawn first, then the slide among those fine enough, then a position uniform over those with enough
foreground. A tile that fails the HSV rule or cannot be read is redrawn on the same slide and µm/px up to `REDRAWS`
times, then on another slide; a slide that cannot be opened is left at once. Idea: kaiko's online patching (Aben et
al., arXiv 2404.15217).

With `tiles_per_visit` above 1 what is drawn for a tile is drawn for its visit (visits.py), and each slot of the visit
is a position near the drawn one (positions.py). A slot that is rejected goes on at the visit's next position, so a slot
does not depend on the others, and reading them together (`tiles`) or one by one (`tile`) gives the same tiles.

Reads pixels through `sources`; knows no batches, workers or training.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from eosin.errors import EosinError, PlanError, RegionError, SlideError, SlideGone, StoreDown
from eosin.progress import say
from eosin.provenance import hash_of, versions
from eosin.randomness import Words
from eosin.tiles.config import TilesConfig
from eosin.tiles.filters import Pixels, hsv_share
from eosin.tiles.visits import Place, Spread

REDRAWS = 16  # positions tried on one slide before another slide is drawn
MOST_SLIDES = 64  # slides tried for one tile before the plan gives up
READ_TRIES = 3  # a transient read error is retried
DECODERS = ("openslide-bin", "opencv-python-headless", "simplejpeg", "Pillow", "tifffile", "imagecodecs")

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """Where a tile lies: image number in its source, top-left corner in level-0 px, scale, side."""

    source: int
    image: int
    name: str
    x: int
    y: int
    mpp: float
    size_px: int

    @property
    def nowhere(self) -> bool:
        """Whether the image has no such tile at all."""
        return self.size_px == 0

    @property
    def number(self) -> int:
        """A 63-bit number that is equal for equal addresses and different otherwise."""
        text = f"{self.source}/{self.image}/{self.x}/{self.y}/{self.mpp!r}/{self.size_px}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


class Rejection(NamedTuple):
    """A try that gave no tile: on which slide or image, at which µm/px, and why ("place", "hsv" or "read")."""

    name: str
    mpp: float
    why: str


@dataclass(frozen=True)
class Tile:
    """Pixels uint8 [S, S, 3] of tile `index`, where they come from, and what failed on the way."""

    index: int
    pixels: Pixels
    address: Address
    rejected: list[Rejection] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


class Source(Protocol):
    """Something tiles can be drawn from: slides of a cohort, a folder of images.

    wide: its images are much larger than a tile, so that several tiles of one place make sense.
    """

    config: TilesConfig
    hash: str
    wide: bool

    @property
    def told(self) -> str:
        """What it is, in a line for people."""

    def check(self) -> None:
        """Raises PlanError where its files are not where they were."""

    def draw(self, seed: int, number: int, index: int, attempt: int) -> Address:
        """Address of attempt `attempt` at tile `index`; `size_px` 0 where this image has no position at all."""

    def around(self, address: Address, words: Words) -> list[Address]:
        """The slots of a visit to a drawn place, `tiles_per_visit` of them. Raises SlideError as `read`."""

    def read(self, addresses: Sequence[Address]) -> list[Pixels]:
        """Pixels of neighbouring addresses of one image and µm/px.

        Raises SlideError where one cannot be read, SlideGone where the whole image cannot be opened.
        """


class TilePlan:
    """Tiles from one or several weighted sources.

    >>> plan = TilePlan([source], seed=0)          # doctest: +SKIP
    >>> plan.tile(12).pixels.shape                 # doctest: +SKIP
    (256, 256, 3)
    """

    def __init__(
        self, sources: Sequence[Source], seed: int, weights: Sequence[float] | None = None, batch: int = 64
    ) -> None:
        """batch: tiles of the global batch, over whose steps the tiles of a visit are spread. Raises PlanError."""
        if not sources:
            raise PlanError("a tile plan needs at least one cohort or folder of tiles")
        self.sources = list(sources)
        self.weights = list(weights) if weights is not None else [1.0] * len(self.sources)
        self.seed = seed
        if len(self.weights) != len(self.sources) or min(self.weights) < 0 or sum(self.weights) <= 0:
            raise PlanError("source weights need one non-negative number a source, with a sum above 0")
        slots = max([source.config.tiles_per_visit for source in self.sources if source.wide], default=1)
        self.spread = Spread.of(seed, slots, batch) if slots > 1 else None

    def check(self) -> None:
        """Prove that a tile can be had, before long work. Raises PlanError or SlideError, one line."""
        for source in self.sources:
            source.check()
        self.tile(0)
        if self.spread is None and self.visits_told:
            say(self.visits_told)

    @property
    def size_px(self) -> int:
        return self.sources[0].config.size_px

    @property
    def hash(self) -> str:
        """Pins what the tiles depend on: sources, filters, weights, seed, and the versions of what decodes pixels."""
        readers = {name: version for name, version in versions().items() if name in DECODERS}
        pinned = [[s.hash for s in self.sources], self.weights, self.seed, REDRAWS, MOST_SLIDES, readers]
        return hash_of(pinned if self.spread is None else [*pinned, vars(self.spread)])

    @property
    def visits_told(self) -> str:
        """What `tiles_per_visit` does, in a line for people; nothing where it is 1."""
        slots = self.sources[0].config.tiles_per_visit
        if self.spread is None:
            return f"tiles.tiles_per_visit={slots} has no effect on folders of tiles" if slots > 1 else ""
        kept = self.spread.most_kept(0, self.spread.batch)
        return (
            f"{slots} tiles each, about {self.spread.round_steps} steps apart; {kept:,} tiles "
            f"({kept * 3 * self.size_px**2 / 1e9:.1f} GB over all processes) wait for their step"
        )

    @property
    def distinct_tiles(self) -> int | None:
        """Tile i is tile i mod this."""
        return self.sources[0].config.distinct_tiles

    def siblings(self, index: int) -> list[int]:
        """The numbers of all tiles of the visit that tile `index` is of, ascending, itself among them."""
        if self.spread is None:
            return [index]
        distinct = self.distinct_tiles
        number = index % distinct if distinct else index
        others = self.spread.tiles(self.spread.place(number).visit)
        return [index - number + other for other in others if not distinct or other < distinct]

    def tile(self, index: int, known_errors: Mapping[tuple[int, int], int] | None = None) -> Tile:
        """Tile `index` ≥ 0.

        known_errors: the run's ledger, (index, attempt) → the attempt that came next. They count as failed without
        being read again, so that a repaired file does not change a tile on resume. Raises PlanError where nothing
        passes the filters.
        """
        return self.tiles([index], known_errors)[0]

    def tiles(self, indices: Sequence[int], known_errors: Mapping[tuple[int, int], int] | None = None) -> list[Tile]:
        """Several tiles of one visit, as `tile` gives them; what they share is read once."""
        distinct = self.distinct_tiles
        numbers = [index % distinct if distinct else index for index in indices]
        places = [self.spread.place(number) if self.spread else Place(number, 0) for number in numbers]
        if len({place.visit for place in places}) != 1:
            raise ValueError(f"tiles {list(indices)} are not of one visit")
        visit = _Visit(self, places[0].visit)
        searches = [
            _search(visit, place.slot, number, known_errors or {})
            for place, number in zip(places, numbers, strict=True)
        ]
        found: dict[int, Tile] = {}
        wanted: dict[int, _Wanted] = {}
        for number, search in enumerate(searches):
            _advance(search, None, number, wanted, found)
        while wanted:
            attempt = min(one.attempt for one in wanted.values())
            group = [number for number, one in wanted.items() if one.attempt == attempt]
            answers = _read(visit.source, [wanted.pop(number).address for number in group])
            for number, answer in zip(group, answers, strict=True):
                _advance(searches[number], answer, number, wanted, found)
        return [found[number] for number in range(len(searches))]


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


class _Visit:
    """Where the slots of one visit look, attempt by attempt. Without visits, a tile is its own."""

    def __init__(self, plan: TilePlan, number: int) -> None:
        self.seed, self.number = plan.seed, number
        self.which = Words(plan.seed, "source", number).choice(plan.weights) if len(plan.weights) > 1 else 0
        self.source = plan.sources[self.which]
        self._shared = plan.spread is not None and self.source.wide
        self._alone = plan.spread is not None and not self.source.wide
        self._places: dict[int, Address] = {}
        self._slots: dict[int, list[Address]] = {}

    def place(self, attempt: int, index: int) -> Address:
        """The drawn place. index: number of the tile, which has a place of its own in sources that are not `wide`."""
        if self._alone:
            return self.source.draw(self.seed, self.which, index, attempt)
        if attempt not in self._places:
            self._places[attempt] = self.source.draw(self.seed, self.which, self.number, attempt)
        return self._places[attempt]

    def slot(self, place: Address, attempt: int, slot: int) -> Address:
        """The slot's own address there. Raises SlideError."""
        if not self._shared:
            return place
        if attempt not in self._slots:
            words = Words(self.seed, "slots", self.number, attempt)
            self._slots[attempt] = _retried(lambda: self.source.around(place, words))
        return self._slots[attempt][slot]


def _search(visit: _Visit, slot: int, index: int, known_errors: Mapping[tuple[int, int], int]) -> _Search:
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
