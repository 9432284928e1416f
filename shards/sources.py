"""Where tiles come from: a directory becomes a sorted list of (location, timestamp, file).

Three layouts are told apart by their names alone:
SpectralEarth's ``<sensor>/<7 digits>/<5 digits>.tif`` (in the directory itself or one level below);
``images/*.tif`` beside other folders (label tiles stay out); any other tree of GeoTIFFs, where each
file is a location of its own.
"""

import itertools
import os
import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import SourceError

LOCATION = re.compile(r"\d{7}")
SCENE = re.compile(r"\d{5}\.tiff?", re.IGNORECASE)


@dataclass(frozen=True, order=True)
class TileSource:
    """One tile file.

    Attributes:
        location: name of the place; tiles of one location stay together.
        timestamp: name of the acquisition (SpectralEarth's scene id), sorted as text.
        path: file path relative to the source directory, with ``/``.
    """

    location: str
    timestamp: str
    path: str

    @property
    def key(self) -> str:
        """Sample key in the tar: ``[A-Za-z0-9_-]+``, since a dot would split a WebDataset sample."""
        return f"{self.location}_{self.timestamp}"


def find_tiles(source: Path, sensor: str) -> list[TileSource]:
    """All tiles of ``sensor`` below ``source``, sorted by location and timestamp.

    Raises:
        SourceError: the directory is missing, holds no tiles, or two files make the same key.
    """
    if not source.is_dir():
        raise SourceError(f"{source}: no such directory of tiles")
    root = tile_root(source, sensor)
    tiles = sorted(_spectralearth(source, root) or _any_tree(source, root))
    if not tiles:
        raise SourceError(f"{source}: no GeoTIFF tiles (expected <sensor>/<location>/<scene>.tif or *.tif)")
    for before, after in itertools.pairwise(tiles):
        if before.key == after.key:
            raise SourceError(f"{source}: {before.path} and {after.path} make the same sample key '{after.key}'")
    return tiles


def tile_root(source: Path, sensor: str) -> Path:
    """The folder that holds the tiles: the sensor's in SpectralEarth's layout, ``images`` in paired ones.

    A downstream dataset keeps its label tiles under the same names in a folder beside the sensor's.
    """
    for name in (sensor, "images"):
        if (source / name).is_dir():
            return source / name
    return source


def _spectralearth(source: Path, root: Path) -> list[TileSource]:
    tiles = []
    for location in os.scandir(root):
        if LOCATION.fullmatch(location.name) and location.is_dir():
            for scene in os.scandir(location.path):
                if SCENE.fullmatch(scene.name):
                    relative = Path(scene.path).relative_to(source).as_posix()
                    tiles.append(TileSource(location.name, Path(scene.name).stem, relative))
    return tiles


def _any_tree(source: Path, root: Path) -> list[TileSource]:
    paths = (path for path in root.rglob("*") if path.suffix.lower() in (".tif", ".tiff"))
    named = ((path.relative_to(source), path.relative_to(root).with_suffix("")) for path in paths)
    return [
        TileSource(re.sub(r"[^A-Za-z0-9]+", "-", name.as_posix()).strip("-"), "00000", path.as_posix())
        for path, name in named
    ]
