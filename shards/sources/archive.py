"""Archives of tiles as downloaded (tar, compressed tar, zip), read front to back without unpacking them to disk.

Only members that GDAL must seek in are copied to a temporary file, one at a time: a zipped product or archive within
the archive (DLR delivers products as zips in a tar.gz), and an ENVI file with its header.
"""

import hashlib
import tempfile
from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from rasterio.io import MemoryFile

from shards.errors import SourceError, TileError
from shards.files.atomic import temporary_path
from shards.sensors.sensor import Sensor
from shards.sources.bundles import Bundle, TileOptions, TileSource, source_of_file
from shards.sources.geotiff import Tile, tile_of
from shards.sources.layouts import envi_files
from shards.sources.limits import SceneLimits
from shards.sources.members import DAMAGE, MACHINE, TAR, ZIP, Links, Member, damaged, members, path_is_zip
from shards.sources.plain import cut_raster, is_scene
from shards.sources.product import METADATA, is_metadata, product_name, vsizip, zip_names
from shards.sources.products.product import Product, known_products
from shards.sources.raster import open_raster
from shards.sources.scene import EnmapProducts, Scene
from shards.sources.tile_names import HEADER, SourceTile, distinct, is_published, is_whole_product, tile_of_name
from shards.sources.walk import is_data, member_name

LARGEST_HEADER = 1 << 20
"""Maximum size in bytes of an ENVI header that is kept until its data file is read."""


@dataclass
class Archive(Bundle):
    """A `Bundle` of the rasters in an archive, named as in a source directory, and of the products and archives in it.

    A later member replaces an earlier one of the same name, as in tar: its tile is yielded again with the same key.
    Links are resolved after the first pass over the archive; a second pass reads targets that are not tiles by name.

    Attributes:
        path: path of the archive.
        name: path relative to the source.
        size: height and width that tiles must have, in pixels.
        limits: limits on the quality of tiles cut from the products in the archive.
        cut: whether rasters larger than a tile are cut.
        left_out: prefixes of member names that belong to other bundles.
        masked: quality layers of the products in the archive whose flagged values become missing.
    """

    kind = "archive"

    path: Path
    name: str
    sensor: Sensor
    size: int
    limits: SceneLimits = field(default_factory=SceneLimits)
    cut: bool = False
    left_out: tuple[str, ...] = ()
    filtered: dict[str, int] = field(default_factory=dict)
    masked: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        status = self.path.stat()
        return f"{status.st_size} {status.st_mtime_ns}"

    def tiles(self, skip: Container[str], scratch: Path | None = None) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        self.filtered.clear()
        last = "none"
        reading = _Reading(self, skip, scratch or Path(tempfile.gettempdir()) / "pack")
        try:
            for member in members(self.path):
                yield from reading.first(member)
                last = member.name
            second_pass = reading.second_pass()
            if second_pass:
                for member in members(self.path):
                    for name in second_pass.get(member.number, ()):
                        yield from reading.again(member, name)
            yield from reading.lost()
        except DAMAGE as error:
            if isinstance(error, OSError) and error.errno in MACHINE:
                raise
            raise damaged(self.path, last, error) from None

    def inner_source(self, name: str) -> TileSource | None:
        """Return the kind of source that a member is, such as an archive; None for tiles and other files."""
        return source_of_file(name) if self.takes(name) else None

    def takes(self, name: str) -> bool:
        return is_data(name) and not (self.left_out and name.startswith(self.left_out))


class _Reading:
    """The state of reading one archive.

    Args:
        skip: sample keys whose tiles are not read.
        scratch: prefix of the paths of temporary files.
    """

    def __init__(self, archive: Archive, skip: Container[str], scratch: Path) -> None:
        self._archive, self._skip, self._scratch = archive, skip, scratch
        self._is_zip = path_is_zip(archive.path)
        self._links = Links()
        self._keys: dict[str, str] = {}  # sample key -> member name
        self._headers: dict[str, bytes] = {}
        self._envi: set[str] = set()
        self._repeated: set[str] = set()
        self._nowhere: list[str] = []

    def first(self, member: Member) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield the tiles of a member during the first pass."""
        is_repeated = self._links.add(member)
        if is_repeated:
            self._repeated.add(member.name)
        if member.file is None or not self._archive.takes(member.name):
            return
        kind = self._archive.inner_source(member.name)
        if kind is not None:
            yield from self._inner(member, kind)
            return
        if member.name.lower().endswith(HEADER) and member.size <= LARGEST_HEADER:
            self._headers[member.name.lower()] = member.read()
        source = self._source(member.name)
        if source is not None and (is_repeated or source.key not in self._skip):
            yield from self._tiles(member, source)

    def second_pass(self) -> dict[int, list[str]]:
        """Return the names of tiles that need a second pass, by the number of the member that holds them."""
        links, second_pass = self._links, dict[int, list[str]]()
        names = [name for name in links.names() if self._archive.takes(name)]
        self._envi = envi_files(names) if self._headers else set()
        for name in sorted(names):
            target = links.soft().get(name)
            if target is not None and self._is_tile(target) and links.content(name) >= 0:
                continue  # another name of a tile
            if (target is not None or name in links.hard() or name in self._envi) and self._is_tile(name):
                second_pass.setdefault(links.content(name), []).append(name)
        self._nowhere = second_pass.pop(-1, [])
        return second_pass

    def again(self, member: Member, name: str) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield the tiles of a name that was still unresolved when its content was read."""
        source = self._source(name)
        if source is not None and (name in self._repeated or source.key not in self._skip):
            yield from self._envi_tiles(member, source) if name in self._envi else self._tiles(member, source)

    def lost(self) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield an error for each link whose target is not in the archive."""
        for name in self._nowhere:
            source, target = self._source(name), self._links.soft().get(name) or self._links.hard().get(name)
            if source is not None:
                yield source, TileError(f"{source.path}: a link to {target}, which is not in the archive")

    def _is_tile(self, name: str) -> bool:
        is_taken = self._archive.takes(name) and self._archive.inner_source(name) is None
        return is_taken and tile_of_name(name, self._archive.sensor.name, None, name in self._envi) is not None

    def _source(self, name: str) -> SourceTile | None:
        """Return the tile that a member's name describes; raises SourceError if two are the same acquisition."""
        source = tile_of_name(name, self._archive.sensor.name, None, name in self._envi)
        if source is None:
            return None
        earlier = self._keys.setdefault(source.key, name)
        if earlier != name:
            if is_published(name) or is_published(earlier):
                raise SourceError(
                    f"{self._archive.path}: {earlier} and {name} have the same sample key '{source.key}': the same "
                    "acquisition of the same location; unpack it, remove one and pack the folder"
                )
            source = replace(source, location=distinct(source.location, name))
        return replace(source, path=f"{self._archive.name}!{name}")

    def _tiles(self, member: Member, source: SourceTile) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        try:
            data = member.read()
        except DAMAGE as error:
            if not self._is_zip:
                raise  # a stream can't be read further
            yield source, TileError(f"{source.path}: damaged in the zip file ({error})")
            return
        with MemoryFile(data) as memory:
            yield from self._read(memory.name, source)

    def _envi_tiles(self, member: Member, source: SourceTile) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield the tiles of an ENVI file; its data and header are copied to a temporary folder for GDAL."""
        names = (f"{member.name}{HEADER}".lower(), f"{member.name.rpartition('.')[0]}{HEADER}".lower())
        header = next((self._headers[name] for name in names if name in self._headers), b"")
        path = self._temporary(member.name)
        beside = path.with_name(f"{path.name}{HEADER}")
        try:
            member.copy_to(path)
            beside.write_bytes(header)
            yield from self._read(str(path), source)
        finally:
            path.unlink(missing_ok=True)
            beside.unlink(missing_ok=True)

    def _read(self, path: str, source: SourceTile) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield the tile in a file, or the tiles that it is cut into."""
        archive = self._archive
        try:
            with open_raster(path) as raster:
                if archive.cut and is_scene(raster.grid.shape, archive.size):
                    bands, skip = raster.select(archive.sensor), () if self._repeated else self._skip
                    yield from cut_raster(raster, bands, source, archive.size, skip, archive.filtered)
                else:
                    yield source, tile_of(raster, archive.sensor, archive.size)
        except TileError as error:
            message = str(error).replace(path, source.path)
            if is_whole_product(source.path.rpartition("!")[2]):
                message += "; a complete product: unpack it and pack its folder"
            yield source, TileError(message)

    def _inner(self, member: Member, kind: TileSource) -> Iterator[tuple[SourceTile, Tile | TileError]]:
        """Yield the tiles of a zipped product or an archive within this one."""
        archive, path = self._archive, self._temporary(member.name)
        try:
            member.copy_to(path)
            name = f"{archive.name}!{member.name}"
            options = TileOptions(archive.sensor, archive.size, archive.limits, archive.cut, archive.masked)
            for bundle in kind.open(path, name, options):
                yield from bundle.tiles(self._skip, self._scratch)
                for reason, count in bundle.filtered.items():
                    archive.filtered[reason] = archive.filtered.get(reason, 0) + count
        except SourceError as error:
            message = str(error).replace(vsizip(path), str(path)).replace(str(path), f"{archive.path}!{member.name}")
            raise SourceError(
                f"{message} (or unpack {archive.path.name}, remove this file, and pack the folder)"
            ) from None
        finally:
            path.unlink(missing_ok=True)

    def _temporary(self, name: str) -> Path:
        digest = hashlib.sha256(f"{self._archive.name}!{name}".encode(errors="surrogateescape")).hexdigest()[:8]
        return temporary_path(self._scratch.with_name(f"{self._scratch.name}-{digest}"))


class ArchiveSource(TileSource):
    """Tar archives and zip files of tiles and products."""

    def claims(self, name: str) -> bool:
        return name.lower().endswith((*TAR, ZIP))

    def open(self, path: Path, name: str, options: TileOptions) -> list[Bundle]:
        """Return one archive or, for a zip file with products, the products and an archive of the other members."""
        sensor, size, limits = options.sensor, options.size, options.limits
        if not name.lower().endswith(ZIP):
            return [Archive(path, name, sensor, size, limits, options.cut, masked=options.masked)]
        kind = _product_of_another_sensor(path)
        if kind is not None:
            return kind.open(path, name, options)
        names = zip_names(path)
        products = sorted(member for member in names if is_metadata(member))
        left_out = tuple(f"{member_name(product)[: -len(METADATA)]}-SPECTRAL_IMAGE" for product in products)
        others = Archive(path, name, sensor, size, limits, options.cut, left_out, masked=options.masked)
        members = [member for member in map(member_name, names) if others.takes(member)]
        envi = envi_files(members)
        has_more = any(
            others.inner_source(member) or tile_of_name(member, sensor.name, None, member in envi) for member in members
        )
        shared = has_more or len(products) > 1
        scenes = [
            Scene(
                path,
                product_name(name, product, shared),
                sensor,
                size,
                limits,
                masked=options.masked,
                metadata_name=product,
            )
            for product in products
        ]
        return [*scenes, others] if has_more else [*scenes]


def _product_of_another_sensor(path: Path) -> Product | None:
    """Return the kind of a zipped product that is not EnMAP's, of which a zip file may hold several."""
    kinds = (kind for kind in known_products() if not isinstance(kind, EnmapProducts))
    return next((kind for kind in kinds if kind.recognizes(path)), None)
