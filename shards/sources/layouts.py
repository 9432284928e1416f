"""Discovery of the tile files of a folder, as a sorted list of (location, timestamp, file).

shards/sources/tile_names.py interprets file names. If two paths give the same location (``a b.tif``, ``a-b.tif``), the
path that is spelled like the location keeps it, and a hash of the path is appended for the others (`distinct_keys`).
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
"""Extensions of ENVI data files. Any other file needs a header with its full name: ``scene``, ``scene.hdr``."""

SPLITS = ("train", "val", "test")


def _ignore(line: str) -> None:
    pass


def find_tiles(
    source: Path,
    sensor: str,
    pattern: str | None = None,
    warn: Callable[[str], None] = _ignore,
    taken: Mapping[str, str] | None = None,
) -> list[SourceTile]:
    """Find all tiles of ``sensor`` below ``source``, sorted by location and timestamp.

    Args:
        pattern: glob of the files that are tiles, relative to ``source``; ``**`` matches any number of folders.
        warn: called with a message about files that look like data but are skipped.
        taken: the path of each sample key of an earlier scan.

    Raises:
        SourceError: the directory is missing or holds no tiles, or two files have the same key.
    """
    if not source.is_dir():
        raise SourceError(f"{source}: no such directory of tiles")
    root = tile_root(source, sensor) if pattern is None else source
    tiles = tiles_in(list_files(root, links_again=pattern is not None), root, sensor, pattern, warn)
    if not tiles:
        raise no_tiles(source, pattern)
    return distinct_keys(_below(tiles, root, source), source, taken or {})


def no_tiles(source: Path, pattern: str | None = None) -> SourceError:
    """Return the error for a folder without tiles."""
    expected = f"files like '{pattern}'" if pattern else "<sensor>/<location>/<scene>.tif, *.tif, or ENVI files"
    hint = "" if pattern else "; choose files of other formats with --pattern"
    return SourceError(f"{source}: no GeoTIFF tiles (expected {expected}{hint})")


def find_listed(
    listing: Listing, source: Path, sensor: str, warn: Callable[[str], None], taken: Mapping[str, str]
) -> list[SourceTile]:
    """Find tiles as `find_tiles` does, in the listing of a source; the list may be empty."""
    root = tile_root(source, sensor)
    if root != source and root.is_symlink():
        listing = list_files(root)  # the walk may have listed it under another name
    elif root != source:
        listing = listing.below(f"{root.relative_to(source).as_posix()}/")
    return distinct_keys(_below(tiles_in(listing, root, sensor, None, warn), root, source), source, taken)


def tiles_in(
    listing: Listing, root: Path, sensor: str, pattern: str | None = None, warn: Callable[[str], None] = _ignore
) -> list[SourceTile]:
    """Find the tiles among the files of a folder, each once, with paths relative to it."""
    envi = envi_files(listing.files, warn) if pattern is None else set()
    parsed = (tile_of_name(name, sensor, pattern, name in envi) for name in listing.files)
    tiles = [tile for tile in parsed if tile]
    if pattern is None:
        alone = [tile for tile in tiles if layout_of(tile.path)[0].excludes_others]
        tiles = alone or tiles  # leaves out pictures and masks beside them
    if listing.links:
        once = listing.once((tile.path for tile in tiles), root)
        tiles = [tile for tile in tiles if tile.path in once]
    return tiles


def _below(tiles: list[SourceTile], root: Path, source: Path) -> list[SourceTile]:
    """Return tiles of a folder with paths relative to a parent folder."""
    prefix = root.relative_to(source).as_posix()
    return tiles if prefix == "." else [replace(tile, path=f"{prefix}/{tile.path}") for tile in tiles]


def envi_files(names: list[str], warn: Callable[[str], None] = _ignore) -> set[str]:
    """Return the files with an ENVI header; ``warn`` is called for headers without data and data without a header."""
    headers = {name[: -len(HEADER)].lower(): name for name in names if name.lower().endswith(HEADER)}
    data, used, alone = set(), set(), []
    for name in names:
        lower = name.lower()
        if lower.endswith(SIDECARS):
            continue
        stem, dot, ending = lower.rpartition(".")
        is_known = f"{dot}{ending}" in (*ENVI, *GEOTIFF)
        header = lower if lower in headers else stem if is_known and stem in headers else None
        if header is not None:
            used.add(header)
            data.add(name)
        elif f"{dot}{ending}" in ENVI:
            alone.append(name)
    bare = sorted(headers[stem] for stem in headers.keys() - used)
    if bare:
        warn(f"{_several(bare)} without its data ({', '.join(ENVI)} or no ending): skipped")
    if alone:
        warn(
            f"{_several(sorted(alone))} without an ENVI header ({HEADER}): skipped; choose other formats with --pattern"
        )
    return {name for name in data if not name.lower().endswith(GEOTIFF)}


def _several(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files, e.g. {names[0]},"


def distinct_keys(tiles: Iterable[SourceTile], source: Path, taken: Mapping[str, str]) -> list[SourceTile]:
    """Sort tiles and give distinct keys to those whose paths differ only in characters that a key can't hold.

    Args:
        taken: the path of each sample key of an earlier scan; the path keeps its key.

    Raises:
        SourceError: two files name the same acquisition of the same place.
    """
    tiles = sorted(tiles)
    if len({tile.key for tile in tiles}) == len(tiles):
        return tiles
    distinct_tiles = []
    for key, group in ((key, list(group)) for key, group in groupby(tiles, key=lambda tile: tile.key)):
        if len(group) > 1 and any(is_published(tile.path) for tile in group):
            raise SourceError(
                f"{source}: {group[0].path} and {group[1].path} have the same sample key '{key}': the same acquisition "
                "of the same place; remove one, or name the folder of one as SOURCE"
            )
        first = min(group, key=lambda tile: (tile.path != taken.get(key), *_unlike(tile)))
        distinct_tiles += [
            tile if tile is first else replace(tile, location=distinct(tile.location, tile.path)) for tile in group
        ]
    return sorted(distinct_tiles)


def _unlike(tile: SourceTile) -> tuple[bool, bool, str]:
    """Return a sort key that puts paths spelled like their location first."""
    return stem(tile.path) != tile.location, not tile.path.endswith(".tif"), tile.path


def tile_root(source: Path, sensor: str) -> Path:
    """Return the folder that holds the tiles: the sensor's in SpectralEarth's layout, ``images`` in paired layouts.

    A downstream dataset keeps its label tiles under the same names in a folder beside the sensor's.
    """
    for name in (sensor, "images"):
        if (source / name).is_dir():
            return source / name
    return source
