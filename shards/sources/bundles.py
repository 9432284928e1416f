"""Bundles: many tiles in one stream of bytes, and the registry of the kinds of files that hold them.

A plugin that registers a `TileSource` makes `pack` find its files in folders and archives, and read them.
"""

from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import TileError
from shards.registry import Registry
from shards.sensors.sensor import Sensor
from shards.sources.geotiff import Tile
from shards.sources.limits import SceneLimits
from shards.sources.tile_names import SourceTile


@dataclass(frozen=True)
class TileOptions:
    """What tiles are wanted.

    Attributes:
        sensor: whose bands they have.
        size: height and width in pixels.
        limits: on the quality of tiles that are cut from products.
        cut: whether rasters larger than a tile are cut.
    """

    sensor: Sensor
    size: int
    limits: SceneLimits = field(default_factory=SceneLimits)
    cut: bool = False


class Bundle(ABC):
    """An archive, a product, or another file that is read once, front to back. It can be sent to another process.

    Attributes:
        kind: noun for messages.
        name: path relative to the source.
        product: name of the product that it is; the same one twice in a source is an error. Empty for none.
        filtered: number of tiles that `tiles` left out, by reason.
    """

    kind = "file"
    product = ""
    name: str
    filtered: dict[str, int]

    @abstractmethod
    def fingerprint(self) -> str:
        """Return sizes and times of the files behind it."""

    @abstractmethod
    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield all tiles but those whose keys are in ``skip``, without decoding these; damaged ones as an error.

        A tile may come again, with the same key: then the later one counts.

        Args:
            scratch: beginning of the paths of temporary files; by default in the system's folder for them.

        Raises:
            SourceError: the bundle ends early or is not what it should be.
        """


class TileSource(ABC):
    """A kind of file that holds many tiles, recognized by its name.

    Attributes:
        is_one_file: whether a file is a whole source, which can also lie in an archive, and not one part of several.
    """

    is_one_file = True

    @abstractmethod
    def claims(self, name: str) -> bool:
        """Return whether a file, by its relative path, is of this kind."""

    @abstractmethod
    def open(self, path: Path, name: str, options: TileOptions) -> Sequence[Bundle]:
        """Return the bundles of a file; there may be none.

        Args:
            path: where the file is, under any name.
            name: its path relative to the source.

        Raises:
            SourceError: the file can't be read.
        """

    def open_all(self, folder: Path, names: Sequence[str], options: TileOptions) -> list[Bundle]:
        """Return the bundles of all files of this kind in a folder."""
        return [bundle for name in names for bundle in self.open(folder / name, name, options)]

    def owned_prefix(self, name: str) -> str:
        """Return how the names of other rasters begin that belong to a file, which are no tiles; empty for none."""
        return ""


TILE_SOURCES: Registry[type[TileSource]] = Registry("tile source")
"""Kinds of files that hold many tiles. The one that was registered last is asked first, as in ``TILE_LAYOUTS``."""
TILE_SOURCES.add("enmap_l2a", "shards.sources.scene:EnmapProducts")
TILE_SOURCES.add("archive", "shards.sources.archive:ArchiveSource")


def tile_sources() -> list[tuple[str, TileSource]]:
    """Return all kinds by name, in the order in which they are asked."""
    return [(name, TILE_SOURCES[name]()) for name in reversed(TILE_SOURCES.names())]


def source_of_file(name: str) -> TileSource | None:
    """Return the kind of which one file is a whole source, None for a file that is none."""
    return next((kind for _, kind in tile_sources() if kind.is_one_file and kind.claims(name)), None)
