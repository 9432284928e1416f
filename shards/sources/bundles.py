"""Bundles, which hold many tiles in one byte stream, and the registry of file kinds that contain them.

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
    """Options for reading tiles.

    Attributes:
        sensor: sensor whose bands the tiles have.
        size: height and width in pixels.
        limits: limits on the quality of tiles cut from products.
        cut: whether rasters larger than a tile are cut.
        masked: quality layers of products whose flagged values become missing.
    """

    sensor: Sensor
    size: int
    limits: SceneLimits = field(default_factory=SceneLimits)
    cut: bool = False
    masked: tuple[str, ...] = ()


class Bundle(ABC):
    """An archive, a product, or another file that is read once, front to back. Bundles can be pickled.

    Attributes:
        kind: noun used in messages.
        name: path relative to the source.
        product: name of the product, empty if the bundle is not one; a product may occur once in a source.
        filtered: number of tiles that `tiles` has left out, by reason.
    """

    kind = "file"
    product = ""
    name: str
    filtered: dict[str, int]

    @abstractmethod
    def fingerprint(self) -> str:
        """Return the sizes and modification times of the underlying files."""

    @abstractmethod
    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield all tiles except those with keys in ``skip``, which are not decoded; a damaged tile yields an error.

        A key may be yielded more than once; the last tile replaces the earlier ones.

        Args:
            scratch: prefix of the paths of temporary files; by default in the system's temporary folder.

        Raises:
            SourceError: the bundle is truncated or invalid.
        """


class TileSource(ABC):
    """A kind of file that holds many tiles, recognized by its name.

    Attributes:
        is_one_file: whether each file is a complete source, which can also be inside an archive, rather than one of
            several parts.
    """

    is_one_file = True

    @abstractmethod
    def claims(self, name: str) -> bool:
        """Return whether a relative path names a file of this kind."""

    @abstractmethod
    def open(self, path: Path, name: str, options: TileOptions) -> Sequence[Bundle]:
        """Return the bundles of a file; the list may be empty.

        Args:
            path: location of the file, under any name.
            name: path relative to the source.

        Raises:
            SourceError: the file can't be read.
        """

    def open_all(self, folder: Path, names: Sequence[str], options: TileOptions) -> list[Bundle]:
        """Return the bundles of all files of this kind in a folder."""
        return [bundle for name in names for bundle in self.open(folder / name, name, options)]

    def owned_prefix(self, name: str) -> str:
        """Return the name prefix of other rasters that belong to a file and are not tiles; empty if there are none."""
        return ""


TILE_SOURCES: Registry[type[TileSource]] = Registry("tile source")
"""Kinds of files that hold many tiles, tried in reverse order of registration, as in ``TILE_LAYOUTS``."""
TILE_SOURCES.add("prisma_l2d", "shards.sources.products.prisma:PrismaProducts")
TILE_SOURCES.add("emit_l2a", "shards.sources.products.emit:EmitProducts")
TILE_SOURCES.add("desis_l2a", "shards.sources.products.desis:DesisProducts")
TILE_SOURCES.add("eo1_l1t", "shards.sources.products.hyperion:HyperionProducts")
TILE_SOURCES.add("enmap_l2a", "shards.sources.scene:EnmapProducts")
TILE_SOURCES.add("archive", "shards.sources.archive:ArchiveSource")


def tile_sources() -> list[tuple[str, TileSource]]:
    """Return all kinds with their names, in the order in which they are tried."""
    return [(name, TILE_SOURCES[name]()) for name in reversed(TILE_SOURCES.names())]


def source_of_file(name: str) -> TileSource | None:
    """Return the kind of a file that is a complete source by itself, or None."""
    return next((kind for _, kind in tile_sources() if kind.is_one_file and kind.claims(name)), None)
