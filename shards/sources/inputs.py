"""The contents of a source: plain tiles, and bundles of many tiles that are read once (shards/sources/bundles.py).

One walk finds everything at any depth. A folder that holds only tiles is packed file by file (shards/pack/build.py);
any other source is packed as bundles (shards/pack/intermediate.py), including its plain tiles.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import SourceError
from shards.sensors.sensor import Sensor
from shards.sources.bundles import TILE_SOURCES, Bundle, TileOptions, tile_sources
from shards.sources.layouts import find_listed, find_tiles, no_tiles
from shards.sources.members import TAR, ZIP
from shards.sources.plain import PlainScene, PlainTiles, is_scene, probes, raster_shape
from shards.sources.tile_names import SourceTile, location_of, tile_of_name
from shards.sources.walk import list_files

DEFAULT_SIZE = 128
"""Size in pixels of tiles cut from a product, as published; also assumed for archives unless --size is given."""

TILES_A_BUNDLE = 2048
"""Plain tiles in each bundle of a source that also has other bundles; one process reads a bundle."""


def _ignore(line: str) -> None:
    pass


@dataclass
class Inputs:
    """The contents of a source.

    Attributes:
        folder: folder that names are relative to.
        tiles: rasters, sorted by name.
        claimed: names of the files that hold many tiles, by their kind in ``TILE_SOURCES``.
        lone: whether the source is a single raster file.
    """

    source: Path
    folder: Path
    sensor: Sensor
    tiles: list[SourceTile] = field(default_factory=list)
    claimed: dict[str, list[str]] = field(default_factory=dict)
    lone: bool = False

    def size(self) -> int:
        """Return the default tile size in pixels: the most common size among the tiles.

        Raises:
            SourceError: there are tiles, but none of the probed ones is square.
        """
        if not self.tiles:
            return DEFAULT_SIZE
        shapes = {tile.path: raster_shape(self.folder / tile.path) for tile in probes(self.tiles)}
        read = {path: shape for path, shape in shapes.items() if shape}
        if self.lone and read:
            return min(DEFAULT_SIZE, *next(iter(read.values())))
        sizes = Counter(height for height, width in read.values() if height == width)
        if sizes:
            return sizes.most_common(1)[0][0]
        if self.claimed:
            return DEFAULT_SIZE
        for path, (height, width) in read.items():
            raise SourceError(
                f"{self.source}: none of {len(shapes)} tiles is a readable square GeoTIFF, e.g. {path} has "
                f"{height}x{width} px: cut them into tiles, e.g. with --size {min(DEFAULT_SIZE, height, width)}"
            )
        raise SourceError(
            f"{self.source}: none of {len(shapes)} tiles is a readable square GeoTIFF, e.g. {next(iter(shapes))}: "
            "no raster that GDAL reads; --pattern chooses others"
        )

    def claimed_names(self) -> list[str]:
        """Return the names of the files that hold many tiles."""
        return [name for names in self.claimed.values() for name in names]

    def bundles(self, options: TileOptions) -> list[Bundle]:
        """Return all contents as bundles, sorted by name; an empty list if there are only plain tiles.

        Raises:
            SourceError: a file can't be read, or a product occurs twice.
        """
        size = options.size
        bundles: list[Bundle] = []
        for kind, names in self.claimed.items():
            bundles += TILE_SOURCES[kind]().open_all(self.folder, names, options)
        self._refuse_twice(bundles)
        scenes = self._scenes(size) if options.cut else set()
        for tile in self.tiles:
            if tile.path in scenes:
                bundles.append(PlainScene(self.folder / tile.path, tile.path, tile, self.sensor, size))
        rest = [tile for tile in self.tiles if tile.path not in scenes]
        if bundles:
            for number, first in enumerate(range(0, len(rest), TILES_A_BUNDLE), 1):
                chunk = rest[first : first + TILES_A_BUNDLE]
                bundles.append(PlainTiles(self.folder, f"plain tiles {number}", chunk, self.sensor, size))
        return sorted(bundles, key=lambda bundle: bundle.name)

    def _scenes(self, size: int) -> set[str]:
        """Return the paths of the rasters to cut; if one of the probed rasters is to be cut, all headers are read."""
        if self.lone:
            return {tile.path for tile in self.tiles}
        if not any(is_scene(raster_shape(self.folder / tile.path), size) for tile in probes(self.tiles)):
            return set()
        return {tile.path for tile in self.tiles if is_scene(raster_shape(self.folder / tile.path), size)}

    def _refuse_twice(self, bundles: list[Bundle]) -> None:
        first: dict[str, str] = {}
        for bundle in bundles:
            earlier = first.setdefault(bundle.product, bundle.name)
            if bundle.product and earlier != bundle.name:
                raise SourceError(
                    f"{self.source}: {earlier} and {bundle.name} are the same product ({bundle.product}): "
                    "remove one of them"
                )


def find_inputs(
    source: Path,
    sensor: Sensor,
    pattern: str | None = None,
    warn: Callable[[str], None] = _ignore,
    taken: Mapping[str, str] | None = None,
) -> Inputs:
    """Find the contents of a folder, or the kind of a file.

    Args:
        pattern: glob of the files that are tiles; if given, nothing else is searched for.
        warn, taken: see `find_tiles`.

    Raises:
        SourceError: there is nothing to pack.
    """
    if not source.exists():
        raise SourceError(f"{source}: no such directory of tiles")
    if source.is_file():
        if pattern is not None:
            raise SourceError(f"{source}: --pattern chooses files of a folder, but this is a file: remove it")
        return _one_file(source, sensor)
    if pattern is not None:
        return Inputs(source, source, sensor, find_tiles(source, sensor.name, pattern, warn, taken))
    listing, claimed = list_files(source), {}
    for name, kind in tile_sources():
        names = [file for file in listing.files if kind.claims(file)]
        owned = tuple(prefix for owner in names if (prefix := kind.owned_prefix(owner)))
        if names:
            claimed[name] = sorted(listing.once(names, source))
            claimed_names = set(names)
            listing.files = [file for file in listing.files if file not in claimed_names and not file.startswith(owned)]
    tiles = find_listed(listing, source, sensor.name, warn, taken or {})
    if not (tiles or claimed):
        raise no_tiles(source)
    return Inputs(source, source, sensor, tiles, claimed)


def _one_file(source: Path, sensor: Sensor) -> Inputs:
    name, folder = source.name, source.absolute().parent
    kind = next((kind for kind, one in tile_sources() if one.is_one_file and one.claims(name)), None)
    if kind is not None:
        return Inputs(source, folder, sensor, claimed={kind: [name]})
    if raster_shape(source) is None:
        raise SourceError(
            f"{source}: neither an archive ({', '.join((*TAR, ZIP))}) nor a raster: name a folder, an archive, a "
            "product, or a file that GDAL reads"
        )
    tile = tile_of_name(name, sensor.name) or SourceTile(location_of(name), "00000", name)
    return Inputs(source, folder, sensor, [tile], lone=True)


def find_bundles(source: Path, options: TileOptions, pattern: str | None = None) -> list[Bundle]:
    """Find the bundles of a source (`Inputs.bundles`).

    Raises:
        SourceError: see `Inputs.bundles`; also if a file is not a bundle.
    """
    bundles = find_inputs(source, options.sensor, pattern).bundles(options)
    if source.is_file() and not bundles:
        raise SourceError(f"{source}: neither an archive of tiles nor a product: it contains nothing to pack")
    return bundles
