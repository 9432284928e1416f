"""Interpretation of tile file names: the location, the acquisition, and the sample key that they form.

Layouts are recognized by names alone, so that one scan of the directories is enough on a shared file system. They are
registered in ``TILE_LAYOUTS``: SpectralEarth's ``<sensor>/<7 digits>/<5 digits>.tif``, patches named like the EnMAP
product that they were cut from (HySpecNet), and any other raster, which is a location of its own.

A location consists of ``[A-Za-z0-9_-]`` and depends only on the file's path: every run of other characters becomes
``-``. If the path has non-ASCII characters or no allowed ones, a hash of the path is appended (`location_of`).
"""

import fnmatch
import hashlib
import re
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass

from shards.registry import Registry

GEOTIFF = (".tif", ".tiff")
HEADER = ".hdr"
SIDECARS = (HEADER, ".aux.xml", ".ovr", ".msk")
"""Files beside a raster that are never tiles, even if a pattern matches them."""

_SCENE = r"(?P<scene>ENMAP01-____L2A-(?P<datatake>DT\d{10})_(?P<time>\d{8}T\d{6}Z)_(?P<tile>\d{3})_V\d{6}_\d{8}T\d{6}Z)"
_IMAGE = r"(?:-(?P<patch>Y\d+_X\d+))?-SPECTRAL_IMAGE(?:_COG)?\.tiff?"


@dataclass(frozen=True, order=True)
class SourceTile:
    """A tile in its source, before it is packed.

    Attributes:
        location: name of the location; tiles of one location stay together.
        timestamp: name of the acquisition (SpectralEarth's scene ID), sorted as text.
        path: path relative to the source directory, with ``/``; ``<archive>!<member>`` in an archive.
        scene: acquisition or product that it was cut from, if known.
        date: ISO day of acquisition, if known.
        mask: path of its label tile relative to the labels folder, or of the one label file; for labeled datasets.
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


class TileLayout(ABC):
    """A naming scheme of tile files. A file has this layout if ``pattern`` matches the end of its relative path.

    Attributes:
        is_published: whether a name identifies location and acquisition, so that two files with one key are an error;
            in other layouts the second file gets a location of its own.
        excludes_others: whether one file of this layout excludes all other rasters of the folder.
    """

    pattern: re.Pattern[str]
    is_published = False
    excludes_others = False

    @abstractmethod
    def tile(self, path: str, match: re.Match[str], sensor: str, is_chosen: bool) -> SourceTile | None:
        """Return the tile of a path, or None if files with this name are not tiles.

        Args:
            match: match of ``pattern``.
            sensor: name of the sensor.
            is_chosen: whether the user selected the file by ``--pattern``.
        """


TILE_LAYOUTS: Registry[type[TileLayout]] = Registry("tile layout")
"""Layouts of tile files, tried in reverse order of registration, so that plugins come first."""


@TILE_LAYOUTS.register("raster")
class RasterLayout(TileLayout):
    """Any raster; each is its own location."""

    pattern = re.compile("$")

    def tile(self, path: str, match: re.Match[str], sensor: str, is_chosen: bool) -> SourceTile | None:
        return SourceTile(location_of(path), "00000", path)


@TILE_LAYOUTS.register("enmap_cut")
class EnmapCutLayout(TileLayout):
    """A file whose name starts with that of an EnMAP product: cut from it in an unknown way."""

    pattern = re.compile(rf"(?:^|/){_SCENE}[^/]*$", re.IGNORECASE | re.ASCII)

    def tile(self, path: str, match: re.Match[str], sensor: str, is_chosen: bool) -> SourceTile | None:
        time = match["time"]
        return SourceTile(location_of(path), time, path, match["scene"], f"{time[:4]}-{time[4:6]}-{time[6:8]}")


@TILE_LAYOUTS.register("enmap_image")
class EnmapImageLayout(EnmapCutLayout):
    """The spectral image of an EnMAP product, or HySpecNet's patch of one: a location is a patch of a datatake."""

    pattern = re.compile(rf"(?:^|/){_SCENE}{_IMAGE}\Z", re.IGNORECASE | re.ASCII)
    is_published = True

    def tile(self, path: str, match: re.Match[str], sensor: str, is_chosen: bool) -> SourceTile | None:
        location = "-".join(filter(None, [match["datatake"], match["tile"], _safe(match["patch"] or "")]))
        time = match["time"]
        return SourceTile(location, time, path, match["scene"], f"{time[:4]}-{time[4:6]}-{time[6:8]}")


@TILE_LAYOUTS.register("enmap_quality")
class EnmapQualityLayout(TileLayout):
    """Quality layers and quicklooks of EnMAP products and patches, which are not tiles."""

    pattern = re.compile(r"-QL_[^/]*$", re.IGNORECASE)

    def tile(self, path: str, match: re.Match[str], sensor: str, is_chosen: bool) -> SourceTile | None:
        return None


@TILE_LAYOUTS.register("spectralearth")
class SpectralEarthLayout(TileLayout):
    """SpectralEarth's ``<sensor>/<location>/<scene>.tif``; label tiles have the same names below another folder."""

    pattern = re.compile(
        r"(?:^|(?P<root>[^/]+)/)(?P<location>\d{7})/(?P<timestamp>\d{5})\.tiff?\Z", re.IGNORECASE | re.ASCII
    )
    is_published = excludes_others = True

    def tile(self, path: str, match: re.Match[str], sensor: str, is_chosen: bool) -> SourceTile | None:
        root = match["root"]
        if root in (None, sensor, "images") or is_chosen or root == path.split("/")[0]:
            return SourceTile(match["location"], match["timestamp"], path)
        return None


def layout_of(path: str) -> tuple[TileLayout, re.Match[str]]:
    """Return the layout of a relative path and the match of its pattern."""
    for name in reversed(TILE_LAYOUTS.names()):
        layout = TILE_LAYOUTS[name]()
        if match := layout.pattern.search(path):
            return layout, match
    raise AssertionError("the layout 'raster' matches every path")


def tile_of_name(path: str, sensor: str, pattern: str | None = None, is_envi: bool = False) -> SourceTile | None:
    """Return the tile that a relative path names, or None for a file that is not a tile.

    Args:
        pattern: glob of the files that are tiles; None accepts GeoTIFF and ENVI files.
        is_envi: whether the file has an ENVI header.
    """
    if path.lower().endswith(SIDECARS):
        return None
    if pattern is not None:
        if not _matches(path.split("/"), pattern.split("/")):
            return None
    elif not (is_envi or path.lower().endswith(GEOTIFF)):
        return None
    layout, match = layout_of(path)
    return layout.tile(path, match, sensor, pattern is not None)


def is_published(path: str) -> bool:
    """Return whether a path's layout identifies location and acquisition."""
    return layout_of(path)[0].is_published


def is_whole_product(path: str) -> bool:
    """Return whether a path is named like the spectral image of a complete EnMAP product."""
    match = EnmapImageLayout.pattern.search(path)
    return match is not None and not match["patch"]


def location_of(path: str) -> str:
    """Return the location of a file that is its own location: its path without the extension, in safe characters."""
    name = stem(path)
    location = _safe(name)
    return location if location and name.isascii() else distinct(location, path)


def distinct(location: str, path: str) -> str:
    """Return a location with a hash of the path appended."""
    # macOS decomposes accented letters into two characters, other systems keep one
    digest = hashlib.sha256(unicodedata.normalize("NFC", path).encode(errors="surrogateescape")).hexdigest()[:12]
    return f"{location}-{digest}" if location else digest


def stem(path: str) -> str:
    """Return a path without its extension."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}{name.rpartition('.')[0] or name}"


def _matches(names: list[str], pattern: list[str]) -> bool:
    """Return whether a path matches a shell pattern, both split at ``/``; unlike in fnmatch, ``*`` excludes ``/``."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_matches(names[i:], pattern[1:]) for i in range(len(names) + 1))
    return bool(names) and fnmatch.fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
