"""Where tiles come from: a directory becomes a sorted list of (location, timestamp, file).

Layouts are told apart by names alone, so that one scan of the directories is all that a shared file
system sees: SpectralEarth's ``<sensor>/<7 digits>/<5 digits>.tif``; patches named like the EnMAP product
that they were cut from (HySpecNet); any other tree of rasters, each file a location of its own. Archives and
whole products are bundles (shards/sources/bundles.py).

A location is a name of ``[A-Za-z0-9_-]``, made of the file's path alone: every run of other characters becomes
``-``. A path with characters beyond ASCII, or with nothing else, gets a hash of it behind (`location_of`). Where
two paths still come out the same (``a b.tif``, ``a-b.tif``), the one that is spelled like its location keeps it,
and the others get their hashes (`distinct_keys`).
"""

import fnmatch
import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from shards.errors import SourceError
from shards.sources.walk import Listing, list_files

SPECTRALEARTH = re.compile(
    r"(?:^|(?P<root>[^/]+)/)(?P<location>\d{7})/(?P<timestamp>\d{5})\.tiff?", re.IGNORECASE | re.ASCII
)
PRODUCT = re.compile(
    r"(?P<scene>ENMAP01-____L2A-(?P<datatake>DT\d{10})_(?P<time>\d{8}T\d{6}Z)_(?P<tile>\d{3})_V\d{6}_\d{8}T\d{6}Z)"
    r"(?P<image>(?:-(?P<patch>Y\d+_X\d+))?-SPECTRAL_IMAGE(?:_COG)?\.tiff?$)?",
    re.IGNORECASE | re.ASCII,
)
LOCATION = re.compile(r"\d{7}", re.ASCII)
GEOTIFF = (".tif", ".tiff")
ENVI = (".dat", ".img", ".bsq", ".bil", ".bip", ".raw")
"""Endings of ENVI's data files. Any other name goes with a header that has the whole name: ``scene``, ``scene.hdr``."""

HEADER = ".hdr"
SIDECARS = (HEADER, ".aux.xml", ".ovr", ".msk")
"""Files beside a raster that no pattern means."""

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
        mask: its label tile relative to the labels folder, or the one file that holds all; for labeled datasets.
        split: ``"train"``, ``"val"`` or ``"test"``, for labeled datasets.
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


def _ignore(line: str) -> None:
    pass


def find_tiles(
    source: Path,
    sensor: str,
    pattern: str | None = None,
    tell: Callable[[str], None] = _ignore,
    taken: Mapping[str, str] | None = None,
) -> list[TileSource]:
    """All tiles of ``sensor`` below ``source``, sorted by location and timestamp.

    Args:
        pattern: which files are tiles, matched against paths relative to ``source``; ``**`` is any number of folders.
        tell: takes a line on files that look like data and are left out.
        taken: the path of each sample key of an earlier scan.

    Raises:
        SourceError: the directory is missing, holds no tiles, or two files make the same key.
    """
    if not source.is_dir():
        raise SourceError(f"{source}: no such directory of tiles")
    root = tile_root(source, sensor) if pattern is None else source
    tiles = tiles_in(list_files(root, links_again=pattern is not None), root, sensor, pattern, tell)
    if not tiles:
        raise no_tiles(source, pattern)
    return distinct_keys(_below(tiles, root, source), source, taken or {})


def no_tiles(source: Path, pattern: str | None = None) -> SourceError:
    """The line on a folder without tiles."""
    expected = f"files like '{pattern}'" if pattern else "<sensor>/<location>/<scene>.tif, *.tif, or ENVI files"
    other = "" if pattern else "; --pattern chooses files of other formats"
    return SourceError(f"{source}: no GeoTIFF tiles (expected {expected}{other})")


def find_listed(
    listing: Listing, source: Path, sensor: str, tell: Callable[[str], None], taken: Mapping[str, str]
) -> list[TileSource]:
    """The same from what a walk of the whole source found; there may be none."""
    root = tile_root(source, sensor)
    if root != source and root.is_symlink():
        listing = list_files(root)  # it may be known to the walk under another name
    elif root != source:
        listing = listing.below(f"{root.relative_to(source).as_posix()}/")
    return distinct_keys(_below(tiles_in(listing, root, sensor, None, tell), root, source), source, taken)


def tiles_in(
    listing: Listing, root: Path, sensor: str, pattern: str | None = None, tell: Callable[[str], None] = _ignore
) -> list[TileSource]:
    """The tiles among the files of a folder, each once; paths are relative to it."""
    envi = envi_files(listing.files, tell) if pattern is None else set()
    found = (tile_of_name(name, sensor, pattern, name in envi) for name in listing.files)
    tiles = [tile for tile in found if tile]
    if pattern is None and any(SPECTRALEARTH.search(tile.path) for tile in tiles):  # pictures or masks may lie beside
        tiles = [tile for tile in tiles if SPECTRALEARTH.search(tile.path)]
    if listing.links:
        once = listing.once((tile.path for tile in tiles), root)
        tiles = [tile for tile in tiles if tile.path in once]
    return tiles


def _below(tiles: list[TileSource], root: Path, source: Path) -> list[TileSource]:
    """Tiles of a folder with paths relative to one above it."""
    prefix = root.relative_to(source).as_posix()
    return tiles if prefix == "." else [replace(tile, path=f"{prefix}/{tile.path}") for tile in tiles]


def envi_files(names: list[str], tell: Callable[[str], None] = _ignore) -> set[str]:
    """Those files that an ENVI header lies beside; ``tell`` takes a line on headers and data that are alone."""
    headers = {name[: -len(HEADER)].lower(): name for name in names if name.lower().endswith(HEADER)}
    data, used, alone = set(), set(), []
    for name in names:
        lower = name.lower()
        if lower.endswith(SIDECARS):
            continue
        stem, dot, ending = lower.rpartition(".")
        ours = f"{dot}{ending}" in (*ENVI, *GEOTIFF)
        header = lower if lower in headers else stem if ours and stem in headers else None
        if header is not None:
            used.add(header)
            data.add(name)
        elif f"{dot}{ending}" in ENVI:
            alone.append(name)
    bare = sorted(headers[stem] for stem in headers.keys() - used)
    if bare:
        tell(f"{_several(bare)} without its data ({', '.join(ENVI)} or no ending): left out")
    if alone:
        tell(f"{_several(sorted(alone))} without an ENVI header ({HEADER}): left out; --pattern takes other formats")
    return {name for name in data if not name.lower().endswith(GEOTIFF)}


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files, e.g. {names[0]},"


def tile_of_name(path: str, sensor: str, pattern: str | None = None, is_envi: bool = False) -> TileSource | None:
    """The tile that a relative path names, None for a file that is no tile.

    Args:
        is_envi: whether an ENVI header lies beside it.
    """
    if path.lower().endswith(SIDECARS):
        return None
    if pattern is not None:
        if not _matches(path.split("/"), pattern.split("/")):
            return None
    elif not (is_envi or path.lower().endswith(GEOTIFF)):
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
    location = location_of(path)
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


def location_of(path: str) -> str:
    """The location of a file that is a location of its own: its path without the ending, in safe characters."""
    stem = _stem(path)
    location = _safe(stem)
    return location if location and stem.isascii() else distinct(location, path)


def distinct(location: str, path: str) -> str:
    """A location with a hash of the path behind it."""
    # a Mac writes letters with marks as two characters, others as one
    digest = hashlib.sha256(unicodedata.normalize("NFC", path).encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{location}-{digest}" if location else digest


def distinct_keys(tiles: Iterable[TileSource], source: Path, taken: Mapping[str, str]) -> list[TileSource]:
    """Tiles sorted, with keys of their own for those whose paths differ only in what a key can't hold.

    Args:
        taken: the path of each key of an earlier scan, which keeps it.

    Raises:
        SourceError: two files claim to be the same acquisition of the same place.
    """
    tiles = sorted(tiles)
    if len({tile.key for tile in tiles}) == len(tiles):
        return tiles
    kept = []
    for key, group in ((key, list(group)) for key, group in groupby(tiles, key=lambda tile: tile.key)):
        if len(group) > 1 and any(is_published(tile.path) for tile in group):
            raise SourceError(
                f"{source}: {group[0].path} and {group[1].path} make the same sample key '{key}': the same acquisition "
                "of the same place; remove one, or name the folder of one as SOURCE"
            )
        first = min(group, key=lambda tile: (tile.path != taken.get(key), *_unlike(tile)))
        kept += [
            tile if tile is first else replace(tile, location=distinct(tile.location, tile.path)) for tile in group
        ]
    return sorted(kept)


def is_published(path: str) -> bool:
    """Whether a name is one of a published layout: then it says which place and acquisition the tile is."""
    published, product = SPECTRALEARTH.search(path), PRODUCT.match(path.rsplit("/", 1)[-1])
    return bool(published and published.end() == len(path)) or bool(product and product["image"])


def _unlike(tile: TileSource) -> tuple[bool, bool, str]:
    """Sorts first what is spelled like its location."""
    return _stem(tile.path) != tile.location, not tile.path.endswith(".tif"), tile.path


def _stem(path: str) -> str:
    """A path without the ending of its last part."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def tile_root(source: Path, sensor: str) -> Path:
    """The folder that holds the tiles: the sensor's in SpectralEarth's layout, ``images`` in paired ones.

    A downstream dataset keeps its label tiles under the same names in a folder beside the sensor's.
    """
    for name in (sensor, "images"):
        if (source / name).is_dir():
            return source / name
    return source


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
