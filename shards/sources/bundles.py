"""What a source holds: plain tiles, and *bundles* of many tiles that are read once: archives, products, scenes.

One walk finds all of it, at any depth. A folder of tiles alone is packed file by file (shards/pack/build.py);
everything else as bundles (shards/pack/intermediate.py), plain tiles beside them included.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from shards.errors import SourceError, TileError
from shards.sensors.sensor import Sensor
from shards.sources.archive import open_container, product_name
from shards.sources.geotiff import Tile
from shards.sources.layouts import TileSource, find_listed, find_tiles, location_of, no_tiles, tile_of_name
from shards.sources.members import TAR, ZIP
from shards.sources.plain import PlainScene, PlainTiles, is_scene, probes, raster_shape
from shards.sources.scene import METADATA, Scene, SceneLimits, is_metadata
from shards.sources.walk import list_files

DEFAULT_SIZE = 128
"""Of tiles cut from a product, as published; archives are taken to hold such tiles unless --size says else."""

TILES_A_BUNDLE = 2048
"""Of plain tiles beside bundles: each bundle is read by one process."""


class Bundle(Protocol):
    """Many tiles in one stream of bytes: an archive or a product. Can be sent to another process.

    Attributes:
        name: path relative to the source.
        filtered: tiles that `tiles` left out because of a limit, by reason.
    """

    name: str
    filtered: dict[str, int]

    def fingerprint(self) -> str:
        """Sizes and times of the files behind it."""

    def tiles(
        self, skip: Container[str], scratch: Path | None = None
    ) -> Iterator["tuple[TileSource, Tile | TileError]"]:
        """All tiles but those whose keys are in ``skip``, which cost no decoding; damaged ones as an error.

        A tile may come again, with the same key: then the later one counts.

        Args:
            scratch: beginning of the paths of temporary files; by default in the system's folder for them.

        Raises:
            SourceError: the bundle ends early or is not what it should be.
        """


def _ignore(line: str) -> None:
    pass


@dataclass
class Inputs:
    """What a source holds.

    Attributes:
        folder: that names are relative to.
        tiles: rasters by name, sorted.
        containers: names of archives and zip files.
        products: names of METADATA.XML files of unpacked products.
        lone: whether the source is one raster file.
    """

    source: Path
    folder: Path
    sensor: Sensor
    tiles: list[TileSource] = field(default_factory=list)
    containers: list[str] = field(default_factory=list)
    products: list[str] = field(default_factory=list)
    lone: bool = False

    def size(self) -> int:
        """Tile size where none is given: the commonest among the tiles, in pixels.

        Raises:
            SourceError: there are tiles, but no square one among those that are probed.
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
        if self.may_hold_products():
            return DEFAULT_SIZE
        for path, (height, width) in read.items():
            raise SourceError(
                f"{self.source}: none of {len(shapes)} tiles is a readable square GeoTIFF, e.g. {path} is of "
                f"{height}x{width} px: cut them into tiles, e.g. with --size {min(DEFAULT_SIZE, height, width)}"
            )
        raise SourceError(
            f"{self.source}: none of {len(shapes)} tiles is a readable square GeoTIFF, e.g. {next(iter(shapes))}: "
            "no raster that GDAL reads; --pattern chooses others"
        )

    def may_hold_products(self) -> bool:
        """Whether limits on quality could apply to anything here."""
        return bool(self.products or self.containers)

    def bundles(self, size: int, limits: SceneLimits, cut: bool) -> list[Bundle]:
        """Everything as bundles, sorted by name; none where there are plain tiles alone.

        Args:
            size: of the tiles in pixels.
            limits: on the quality of tiles cut from products.
            cut: whether rasters larger than a tile are cut.

        Raises:
            SourceError: a zip file that can't be read, or one product twice.
        """
        found: list[Bundle] = []
        for name in self.containers:
            found += open_container(self.folder / name, name, self.sensor, size, limits, cut)
        folders = Counter(_folder_of(name) for name in self.products)
        for name in self.products:
            folder = _folder_of(name)
            container = folder or self.source.absolute().name
            shown = product_name(container, name, folders[folder] > 1)
            path = self.folder / folder if folder else self.folder
            found.append(Scene(path, shown, self.sensor, size, limits, metadata_name=name.rpartition("/")[2]))
        self._refuse_twice(found)
        scenes = self._scenes(size) if cut else set()
        for tile in self.tiles:
            if tile.path in scenes:
                found.append(PlainScene(self.folder / tile.path, tile.path, tile, self.sensor, size))
        rest = [tile for tile in self.tiles if tile.path not in scenes]
        if found:
            for number, first in enumerate(range(0, len(rest), TILES_A_BUNDLE), 1):
                chunk = rest[first : first + TILES_A_BUNDLE]
                found.append(PlainTiles(self.folder, f"plain tiles {number}", chunk, self.sensor, size))
        return sorted(found, key=lambda bundle: bundle.name)

    def _scenes(self, size: int) -> set[str]:
        """Paths of the rasters to cut: all headers are read where one of the probes is such a raster."""
        if self.lone:
            return {tile.path for tile in self.tiles}
        if not any(is_scene(raster_shape(self.folder / tile.path), size) for tile in probes(self.tiles)):
            return set()
        return {tile.path for tile in self.tiles if is_scene(raster_shape(self.folder / tile.path), size)}

    def _refuse_twice(self, bundles: list[Bundle]) -> None:
        first: dict[str, str] = {}
        for bundle in bundles:
            if isinstance(bundle, Scene) and bundle.metadata_name:
                stem = Path(bundle.metadata_name).name
                other = first.setdefault(stem, bundle.name)
                if other != bundle.name:
                    raise SourceError(
                        f"{self.source}: {other} and {bundle.name} are the same product "
                        f"({stem[: -len(METADATA)]}): remove one of them"
                    )


def find_inputs(
    source: Path,
    sensor: Sensor,
    pattern: str | None = None,
    tell: Callable[[str], None] = _ignore,
    taken: Mapping[str, str] | None = None,
) -> Inputs:
    """What a folder holds, or what a file is.

    Args:
        pattern: which files of the folder are tiles; then nothing else is looked for.
        tell, taken: see `find_tiles`.

    Raises:
        SourceError: nothing is there that could be packed.
    """
    if not source.exists():
        raise SourceError(f"{source}: no such directory of tiles")
    if source.is_file():
        if pattern is not None:
            raise SourceError(f"{source}: --pattern chooses files of a folder, and this is a file: leave it out")
        return _one_file(source, sensor)
    if pattern is not None:
        return Inputs(source, source, sensor, find_tiles(source, sensor.name, pattern, tell, taken))
    listing = list_files(source)
    containers = listing.once((name for name in listing.files if name.lower().endswith((*TAR, ZIP))), source)
    products = listing.once((name for name in listing.files if is_metadata(name)), source)
    if products:
        images = tuple(f"{name[: -len(METADATA)]}-SPECTRAL_IMAGE" for name in products)
        listing.files = [name for name in listing.files if not name.startswith(images)]
    tiles = find_listed(listing, source, sensor.name, tell, taken or {})
    if not (tiles or containers or products):
        raise no_tiles(source)
    return Inputs(source, source, sensor, tiles, sorted(containers), sorted(products))


def _one_file(source: Path, sensor: Sensor) -> Inputs:
    name, folder = source.name, source.absolute().parent
    if name.lower().endswith((*TAR, ZIP)):
        return Inputs(source, folder, sensor, containers=[name])
    if raster_shape(source) is None:
        raise SourceError(
            f"{source}: neither an archive ({', '.join((*TAR, ZIP))}) nor a raster: name a folder, an archive, an "
            "EnMAP L2A product, or a file that GDAL reads"
        )
    tile = tile_of_name(name, sensor.name) or TileSource(location_of(name), "00000", name)
    return Inputs(source, folder, sensor, [tile], lone=True)


def find_bundles(
    source: Path,
    sensor: Sensor,
    size: int,
    limits: SceneLimits,
    cut: bool = False,
    pattern: str | None = None,
) -> list[Bundle]:
    """The bundles of a source (`Inputs.bundles`).

    Raises:
        SourceError: also where a file is no bundle.
    """
    bundles = find_inputs(source, sensor, pattern).bundles(size, limits, cut)
    if source.is_file() and not bundles:
        raise SourceError(
            f"{source}: neither an archive of tiles nor a zipped EnMAP L2A product: nothing to pack in it"
        )
    return bundles


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]
