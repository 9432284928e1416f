"""The tile files of a folder, as a sorted list of (location, timestamp, file).

What a file's name tells is in shards/sources/tile_names.py. Where two paths make one location (``a b.tif``,
``a-b.tif``), the one that is spelled like it keeps it, and the others get a hash of their path behind it
(`distinct_keys`).
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from shards.errors import SourceError
from shards.sources.tile_names import (
    GEOTIFF,
    HEADER,
    SIDECARS,
    SourceTile,
    distinct,
    is_published,
    layout_of,
    stem,
    tile_of_name,
)
from shards.sources.walk import Listing, list_files

LOCATION = re.compile(r"\d{7}", re.ASCII)
ENVI = (".dat", ".img", ".bsq", ".bil", ".bip", ".raw")
"""Endings of ENVI's data files. Any other name goes with a header that has the whole name: ``scene``, ``scene.hdr``."""

SPLITS = ("train", "val", "test")


def _ignore(line: str) -> None:
    pass


def find_tiles(
    source: Path,
    sensor: str,
    pattern: str | None = None,
    tell: Callable[[str], None] = _ignore,
    taken: Mapping[str, str] | None = None,
) -> list[SourceTile]:
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
) -> list[SourceTile]:
    """The same from what a walk of the whole source found; there may be none."""
    root = tile_root(source, sensor)
    if root != source and root.is_symlink():
        listing = list_files(root)  # it may be known to the walk under another name
    elif root != source:
        listing = listing.below(f"{root.relative_to(source).as_posix()}/")
    return distinct_keys(_below(tiles_in(listing, root, sensor, None, tell), root, source), source, taken)


def tiles_in(
    listing: Listing, root: Path, sensor: str, pattern: str | None = None, tell: Callable[[str], None] = _ignore
) -> list[SourceTile]:
    """The tiles among the files of a folder, each once; paths are relative to it."""
    envi = envi_files(listing.files, tell) if pattern is None else set()
    found = (tile_of_name(name, sensor, pattern, name in envi) for name in listing.files)
    tiles = [tile for tile in found if tile]
    if pattern is None:
        alone = [tile for tile in tiles if layout_of(tile.path)[0].excludes_others]
        tiles = alone or tiles  # pictures or masks may lie beside them
    if listing.links:
        once = listing.once((tile.path for tile in tiles), root)
        tiles = [tile for tile in tiles if tile.path in once]
    return tiles


def _below(tiles: list[SourceTile], root: Path, source: Path) -> list[SourceTile]:
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


def distinct_keys(tiles: Iterable[SourceTile], source: Path, taken: Mapping[str, str]) -> list[SourceTile]:
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


def _unlike(tile: SourceTile) -> tuple[bool, bool, str]:
    """Sorts first what is spelled like its location."""
    return stem(tile.path) != tile.location, not tile.path.endswith(".tif"), tile.path


def tile_root(source: Path, sensor: str) -> Path:
    """The folder that holds the tiles: the sensor's in SpectralEarth's layout, ``images`` in paired ones.

    A downstream dataset keeps its label tiles under the same names in a folder beside the sensor's.
    """
    for name in (sensor, "images"):
        if (source / name).is_dir():
            return source / name
    return source
