"""TilePlan: tile number i is a function of (seed, i) and of what the run pins by hash.

The µm/px is drawn first, then the slide among those fine enough, then a position uniform over those with enough
foreground. What fails is redrawn (search.py). Idea: kaiko's online patching (Aben et al., arXiv 2404.15217).

With `tiles_per_visit` above 1 what is drawn for a tile is drawn for its visit (visits.py), and each slot of the visit
is a position near the drawn one (positions.py). A slot that is rejected goes on at the visit's next position, so a slot
does not depend on the others, and reading them together (`tiles`) or one by one (`tile`) gives the same tiles.

Reads pixels through `sources`; knows no batches, workers or training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eosin.errors import PlanError
from eosin.progress import say
from eosin.provenance import hash_of, versions
from eosin.randomness import Words
from eosin.tiles.search import MOST_SLIDES, Visit
from eosin.tiles.source import REDRAWS, Source, Tile
from eosin.tiles.visits import Place, Spread

DECODERS = ("openslide-bin", "opencv-python-headless", "simplejpeg", "Pillow", "tifffile", "imagecodecs")


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
        for name in ("size_px", "tiles_per_visit", "distinct_tiles"):
            if len({getattr(source.config, name) for source in self.sources}) > 1:
                raise PlanError(f"the sources of a tile plan need one and the same tiles.{name}")
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
    def far(self) -> bool:
        """Whether some tiles come from an object store."""
        return any(source.far for source in self.sources)

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
        number = places[0].visit
        which = Words(self.seed, "source", number).choice(self.weights) if len(self.weights) > 1 else 0
        visit = Visit(self.sources[which], which, self.seed, number, self.spread is not None)
        return visit.tiles([place.slot for place in places], numbers, known_errors or {})
