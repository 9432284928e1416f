"""Where tiles come from: a directory becomes a sorted list of (location, timestamp, file), or a list of bundles.

Layouts are told apart by names alone, so that one scan of the directories is all that a shared file
system sees: SpectralEarth's ``<sensor>/<7 digits>/<5 digits>.tif``; patches named like the EnMAP product
that they were cut from (HySpecNet); any other tree of GeoTIFFs, each file a location of its own. Archives
and whole products are *bundles*: each is read once, front to back (shards/archive.py, shards/scene.py).
"""

import fnmatch
import itertools
import os
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from shards.errors import SourceError, TileError

if TYPE_CHECKING:  # these import GDAL
    from shards.geotiff import Tile
    from shards.scene import SceneLimits
    from shards.sensors import Sensor

SPECTRALEARTH = re.compile(r"(?:^|(?P<root>[^/]+)/)(?P<location>\d{7})/(?P<timestamp>\d{5})\.tiff?", re.IGNORECASE)
PRODUCT = re.compile(
    r"(?P<scene>ENMAP01-____L2A-(?P<datatake>DT\d{10})_(?P<time>\d{8}T\d{6}Z)_(?P<tile>\d{3})_V\d{6}_\d{8}T\d{6}Z)"
    r"(?P<image>(?:-(?P<patch>Y\d+_X\d+))?-SPECTRAL_IMAGE(?:_COG)?\.tiff?$)?",
    re.IGNORECASE,
)
LOCATION = re.compile(r"\d{7}")
GEOTIFF = (".tif", ".tiff")
ARCHIVE = (".tar", ".tar.gz", ".tgz")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, order=True)
class TileSource:
    """One tile file.

    Attributes:
        location: name of the place; tiles of one location stay together.
        timestamp: name of the acquisition (SpectralEarth's scene id), sorted as text.
        path: file path relative to the source directory, with ``/``; ``<archive>!<member>`` in an archive.
        scene: acquisition or product that it was cut from, where known.
        date: day of acquisition, ISO, where known.
        mask: its label tile relative to the labels folder, or the one file that holds all; for labelled datasets.
        split: ``"train"``, ``"val"`` or ``"test"``, for labelled datasets.
    """

    location: str
    timestamp: str
    path: str
    scene: str = ""
    date: str = ""
    mask: str = ""
    split: str = ""

    @property
    def key(self) -> str:
        """Sample key in the tar: ``[A-Za-z0-9_-]+``, since a dot would split a WebDataset sample."""
        return f"{self.location}_{self.timestamp}"


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

    def tiles(self, skip: Container[str]) -> Iterator["tuple[TileSource, Tile | TileError]"]:
        """All tiles but those whose keys are in ``skip``, which cost no decoding; damaged ones as an error.

        Raises:
            SourceError: the bundle ends early or is not what it should be.
        """


def find_tiles(source: Path, sensor: str, pattern: str | None = None) -> list[TileSource]:
    """All tiles of ``sensor`` below ``source``, sorted by location and timestamp.

    Args:
        pattern: which files are tiles, matched against paths relative to ``source``; ``**`` is any number of folders.

    Raises:
        SourceError: the directory is missing, holds no tiles, or two files make the same key.
    """
    if not source.is_dir():
        raise SourceError(f"{source}: no such directory of tiles")
    root = tile_root(source, sensor) if pattern is None else source
    prefix = root.relative_to(source).as_posix()
    base = "" if prefix == "." else f"{prefix}/"
    found = (tile_of_name(name, sensor, pattern) for name in _files(root, ""))
    tiles = sorted(replace(tile, path=base + tile.path) for tile in found if tile)
    if pattern is None and any(SPECTRALEARTH.search(tile.path) for tile in tiles):  # pictures or masks may lie beside
        tiles = [tile for tile in tiles if SPECTRALEARTH.search(tile.path)]
    if not tiles:
        expected = f"files like '{pattern}'" if pattern else "<sensor>/<location>/<scene>.tif or *.tif"
        raise SourceError(f"{source}: no GeoTIFF tiles (expected {expected})")
    for before, after in itertools.pairwise(tiles):
        if before.key == after.key:
            raise SourceError(f"{source}: {before.path} and {after.path} make the same sample key '{after.key}'")
    return tiles


def tile_of_name(path: str, sensor: str, pattern: str | None = None) -> TileSource | None:
    """The tile that a relative path names, None for a file that is no tile."""
    if pattern is not None:
        if not _matches(path.split("/"), pattern.split("/")):
            return None
    elif not path.lower().endswith(GEOTIFF):
        return None
    published = SPECTRALEARTH.search(path)
    if published and published.end() == len(path):
        root = published["root"]  # label tiles have the same names below another folder
        if root in (None, sensor, "images") or pattern is not None or root == path.split("/")[0]:
            return TileSource(published["location"], published["timestamp"], path)
        return None
    name = path.rsplit("/", 1)[-1]
    if "-QL_" in name.upper():
        return None  # quality layers and quicklooks of EnMAP products and patches
    product = PRODUCT.match(name)
    location = _safe(path.rsplit(".", 1)[0])
    if not product:
        return TileSource(location, "00000", path)
    if product["image"]:  # else somebody's own cut, under a name of their own
        location = "-".join(filter(None, [product["datatake"], product["tile"], _safe(product["patch"] or "")]))
    time = product["time"]
    return TileSource(location, time, path, product["scene"], f"{time[:4]}-{time[4:6]}-{time[6:8]}")


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Whether a path fits a shell pattern, both split at ``/``: ``*`` stays within a name, unlike in fnmatch."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[i:], pattern[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def tile_root(source: Path, sensor: str) -> Path:
    """The folder that holds the tiles: the sensor's in SpectralEarth's layout, ``images`` in paired ones.

    A downstream dataset keeps its label tiles under the same names in a folder beside the sensor's.
    """
    for name in (sensor, "images"):
        if (source / name).is_dir():
            return source / name
    return source


def find_bundles(source: Path, sensor: "Sensor", size: int, limits: "SceneLimits") -> list[Bundle]:
    """The archives and products that ``source`` is or holds, sorted by name; none for a directory of tiles.

    Args:
        size: of the tiles in pixels.
        limits: on the quality of tiles cut from products.

    Raises:
        SourceError: both bundles and plain tiles are there.
    """
    from shards.archive import Archive
    from shards.scene import Scene, is_product

    if not source.exists():
        raise SourceError(f"{source}: no such directory of tiles")
    folder, entries = source.absolute().parent, [(source.absolute().name, source.is_dir())]
    if source.is_dir() and not is_product(source):
        folder = source
        with os.scandir(source) as listing:  # names and types alone: the folder may hold 415,000 locations
            entries = sorted((entry.name, entry.is_dir()) for entry in listing)
    bundles: list[Bundle] = []
    others = []
    for name, is_dir in entries:
        path, lower = folder / name, name.lower()
        if not is_dir and lower.endswith(ARCHIVE):
            bundles.append(Archive(path, name, sensor, size))
        elif (lower.endswith(".zip") or (is_dir and not LOCATION.fullmatch(name))) and is_product(path):
            bundles.append(Scene(path, name, sensor, size, limits))
        else:
            others.append((name, is_dir))
    if source.is_file() and not bundles:
        raise SourceError(f"{source}: neither an archive ({', '.join(ARCHIVE)}) nor a zipped EnMAP L2A product")
    if bundles:
        files = (file for name, is_dir in others for file in (_files(folder / name, f"{name}/") if is_dir else [name]))
        plain = next((file for file in files if file.lower().endswith(GEOTIFF)), None)
        if plain:
            raise SourceError(f"{source}: holds archives or products, and tiles ({plain}): pack them one by one")
    return bundles


def _files(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of all files below a folder, relative to it; the entry types come with the listing, no stat a file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _files(Path(entry.path), f"{prefix}{entry.name}/")
            else:
                yield f"{prefix}{entry.name}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
