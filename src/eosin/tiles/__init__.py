"""Online patching: a cohort becomes an endless, addressable stream of tiles; nothing is cut in advance."""

from eosin.tiles.config import MppRange, TilesConfig
from eosin.tiles.filters import foreground_share, hsv_share
from eosin.tiles.folder_source import FolderSource
from eosin.tiles.plan import TilePlan
from eosin.tiles.slide_source import SlideSource
from eosin.tiles.source import Address, Rejection, Source, Tile
from eosin.tiles.stream import TileBatch, TileStream

__all__ = [
    "Address",
    "FolderSource",
    "MppRange",
    "Rejection",
    "SlideSource",
    "Source",
    "Tile",
    "TileBatch",
    "TilePlan",
    "TileStream",
    "TilesConfig",
    "foreground_share",
    "hsv_share",
]
