"""Pairing of images with their labels, and assignment of tiles to splits."""

import itertools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from shards.errors import SourceError, TileError
from shards.files.text import encoding_of
from shards.order.random_bits import fold_in
from shards.sources.labels import Labels, as_stored, read_grid
from shards.sources.layouts import LOCATION, SPLITS, find_tiles, tile_root
from shards.sources.tile_names import SourceTile

TRIED = 8
"""Number of labels that are read as a check before anything is written."""

SIDECARS = (".hdr", ".xml", ".ovr", ".msk", ".tfw", ".wld", ".prj", ".txt", ".json", ".csv", ".md")
"""Extensions of files with a raster's name that are not labels."""


def find_labeled(images: Path, labels: Labels, sensor: str, seed: int) -> list[SourceTile]:
    """Find tiles with their label tiles and splits, sorted.

    Args:
        images: folder of tiles; the name of the sensor's folder within it is ignored, so that ``enmap_corine`` matches
            ``enmap_corine/corine``.
        labels: folder of label tiles with the same relative names, or one file; without split files, tiles are split
            60/20/20 by location.
        seed: seed of the split by location.

    Raises:
        SourceError: a tile has no label, or a split names a tile that is missing or already named.
    """
    if not labels.path.exists():
        raise SourceError(f"{labels.path}: no such folder or file of labels")
    tiles = find_tiles(images, sensor)
    split = published_split(labels.splits, tiles, images) if labels.splits else split_by_location(tiles, seed)
    prefix = label_prefix(images, sensor)
    chosen = []
    for name in SPLITS:
        for tile in split[name]:
            mask = labels.path.name if labels.one_file else find_label(labels.path, tile.path, prefix)
            chosen.append(replace(tile, mask=mask, split=name))
    chosen.sort()
    for before, after in itertools.pairwise(chosen):
        if before.key == after.key:
            raise SourceError(f"{images}: the split files name {after.path} twice ({before.split}, {after.split})")
    check_labels(labels, [images / tile.path for tile in chosen])
    _try_labels(labels, images, chosen)
    return chosen


def _try_labels(labels: Labels, images: Path, tiles: Sequence[SourceTile]) -> None:
    """Raise SourceError if none of the first labels fits its image, before anything is written."""
    refused, tried = [], 0
    for tile in tiles[:: max(1, len(tiles) // TRIED)][:TRIED]:
        with suppress(TileError):  # skip unreadable images
            grid = read_grid(images / tile.path)
            tried += 1
            try:
                as_stored(labels.read("" if labels.one_file else tile.mask, grid), str(labels.path / tile.mask))
            except TileError as error:
                refused.append(str(error))
    if refused and len(refused) == tried:
        raise SourceError(refused[0])


def label_prefix(images: Path, sensor: str) -> str:
    """Return the folder of images that the labels may lack: the sensor's, or ``images``."""
    return f"{tile_root(images, sensor).relative_to(images).as_posix()}/"


def find_label(labels: Path, image: str, prefix: str = "") -> str:
    """Find the label tile of an image, relative to the labels' folder: the same name, in any format.

    Args:
        image: relative path of the image; the labels may lack ``prefix``.

    Raises:
        SourceError: the image has no label, or several.
    """
    names = list(dict.fromkeys((image.removeprefix(prefix), image)))
    for name in names:
        if (labels / name).is_file():
            return name
    for name in names:
        path = labels / name
        stem = re.escape(path.stem)
        candidates = sorted(
            file.name
            for file in (path.parent.iterdir() if path.parent.is_dir() else ())
            if re.fullmatch(rf"{stem}(\.\w+)?", file.name) and file.is_file() and file.suffix.lower() not in SIDECARS
        )
        if len(candidates) > 1:
            raise SourceError(
                f"{path.parent}: {candidates[0]} and {candidates[1]} could both be the label of {image}: keep one"
            )
        if candidates:
            return (Path(name).parent / candidates[0]).as_posix()
    raise SourceError(f"{labels / names[0]}: no label tile for this image")


def check_labels(labels: Labels, images: Sequence[Path]) -> None:
    """Check a file of polygons before it is read: its layer, its field, and whether it overlaps an image.

    Raises:
        SourceError: a check fails, or an option does not apply to the labels.
    """
    if not labels.is_vector:
        if labels.field or labels.layer:
            raise SourceError(
                f"{labels.path}: label_field and label_layer apply only to polygons, but this is a raster or folder"
            )
        return
    from shards.sources.vectors import check_overlap, check_values, open_layer  # pyogrio and shapely are an extra

    if labels.align:
        raise SourceError(f"{labels.path}: align applies only to label tiles; polygons are burned onto any grid")
    layer = open_layer(labels.path, labels.field, labels.layer)
    check_values(layer, labels.names or {}, labels.unnamed)
    check_overlap(layer, map(read_grid, images))


def split_by_location(tiles: Sequence[SourceTile], seed: int) -> dict[str, list[SourceTile]]:
    """Split tiles 60/20/20 by location, in an order drawn from the seed; no location is in two splits."""
    names = sorted({tile.location for tile in tiles}, key=lambda name: fold_in(seed, "split", name))
    held = max(1, round(0.2 * len(names)))
    test, val = set(names[:held]), set(names[held : 2 * held])
    split: dict[str, list[SourceTile]] = {name: [] for name in SPLITS}
    for tile in tiles:
        split["test" if tile.location in test else "val" if tile.location in val else "train"].append(tile)
    return split


def published_split(
    splits: Path | Mapping[str, Path], tiles: Sequence[SourceTile], images: Path
) -> dict[str, list[SourceTile]]:
    """Split tiles by the split files, which name one tile in each line.

    A line is a tile's full path below ``images``, or the unique end of a path (``<location>/<scene>.tif``). It may omit
    the extension and may start with folders above ``images``.

    Raises:
        SourceError: a file is missing, or a line matches no tile or several.
    """
    names = TileNames(tiles, images)
    split = {}
    for name in SPLITS:
        path = splits / f"{name}.txt" if isinstance(splits, Path) else splits[name]
        lines = read_lines(path)
        listed = [names.find(line, path) for line in lines]
        absent = [line for line, tile in zip(lines, listed, strict=True) if tile is None]
        if absent:
            raise SourceError(f"{path}: {len(absent)} of {len(lines)} tiles are missing, e.g. {absent[0]}")
        split[name] = [tile for tile in listed if tile is not None]
    return split


def read_lines(path: Path) -> list[str]:
    """Read the nonblank lines of a text file; raises SourceError if it can't be read."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]


def read_text(path: Path) -> str:
    """Read a text file in UTF-8 or as its byte order mark says; raises SourceError if it is missing or not text."""
    if not path.is_file():
        raise SourceError(f"{path}: missing split file")
    data = path.read_bytes()
    encoding = encoding_of(data)
    try:
        return data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise SourceError(f"{path}: not a text file in {encoding} ({error.reason}): save it as UTF-8") from None


class TileNames:
    """An index of tiles by every suffix of their paths, with and without the extension."""

    def __init__(self, tiles: Sequence[SourceTile], images: Path) -> None:
        self._exact = {_normal(tile.path): [tile] for tile in tiles}
        self._whole: dict[str, list[SourceTile]] = {}
        self._endings: dict[str, list[SourceTile]] = {}
        self._above = images.absolute().parts
        for tile in tiles:
            for path in dict.fromkeys(_with_and_without_extension(_normal(tile.path))):
                self._whole.setdefault(path, []).append(tile)
                parts = path.split("/")
                for first in range(1, len(parts)):
                    self._endings.setdefault("/".join(parts[first:]), []).append(tile)

    def find(self, line: str, where: Path) -> SourceTile | None:
        """Return the tile that a line names, or None; raises SourceError if the name is ambiguous."""
        name = _normal(line)
        below = self._below(name)
        matches = self._exact.get(name) or self._whole.get(name) or self._whole.get(below) or self._endings.get(name)
        if not matches:
            return None
        if len(matches) > 1:
            raise SourceError(
                f"{where}: '{line}' could be {matches[0].path} or {matches[1].path}: write a longer part of its path"
            )
        return matches[0]

    def _below(self, name: str) -> str:
        """Return the part of a path below the images, for paths that start above them."""
        parts = [*(("/",) if name.startswith("/") else ()), *name.strip("/").split("/")]
        for count in range(min(len(self._above), len(parts) - 1), 0, -1):
            if tuple(parts[:count]) == tuple(map(_normal, self._above[-count:])):
                return "/".join(parts[count:])
        return name


def _normal(name: str) -> str:
    """Normalize a path: ``/`` as separator, no leading ``./``, composed characters (macOS decomposes them)."""
    name = unicodedata.normalize("NFC", name.strip().strip('"').replace("\\", "/"))
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _with_and_without_extension(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    return path, f"{folder}{slash}{name.rpartition('.')[0] or name}"


def scene_of(tile: SourceTile) -> str:
    """Return the acquisition of a tile; empty if its name gives none (a generated timestamp is not a scene)."""
    published = LOCATION.fullmatch(tile.location) and re.fullmatch(r"\d{5}", tile.timestamp)
    return tile.scene or (tile.timestamp if published and tile.timestamp != "00000" else "")
