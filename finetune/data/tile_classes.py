"""One class per tile, from a table (.csv) that names tiles, or from the names of the tiles' folders."""

import csv
import io
from functools import partial
from pathlib import Path

import numpy as np

from finetune.config import LabeledDataConfig
from finetune.data.folders import folders_of, item_of_file, split_tiles
from finetune.data.items import Split
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError
from shards.sensors.sensor import NODATA, get_sensor
from shards.sources.layouts import SPLITS, find_tiles
from shards.sources.pairs import TileNames, read_text
from shards.sources.tile_names import SourceTile


def find_with_tile_classes(data: LabeledDataConfig, task: Task, seed: int) -> Split:
    """Find tiles with their classes, from the table of labels if there is one, else from the names of their folders.

    Images that the table doesn't name are left out.

    Raises:
        ConfigError, SourceError: a folder, table or tile is missing, or a class is not one of the task's.
    """
    if data.shards is not None or data.label_layer or data.align:
        raise ConfigError(
            f"task {task.name} has one class for each tile: give data.images with a table (.csv) as data.labels, or "
            "without data.labels where the folders of images are named by class"
        )
    images, table = folders_of(data, task)
    sensor = get_sensor(task.sensor)
    tiles = find_tiles(images, sensor.name)
    codes = _classes_of_folders(tiles, task) if table is None else _read_table(table, tiles, images, data, task)
    labeled = [tile for tile in tiles if tile.path in codes]
    split = split_tiles(data, labeled, images, seed)
    return {
        name: [item_of_file(tile, images, sensor, partial(np.array, codes[tile.path])) for tile in split[name]]
        for name in SPLITS
    }


def _classes_of_folders(tiles: list[SourceTile], task: Task) -> dict[str, int]:
    """Return the code of each tile by path, from the name of its folder."""
    codes = {}
    for tile in tiles:
        folder = Path(tile.path).parent.name
        if not folder:
            raise SourceError(f"{tile.path}: is not in a folder named after its class: give a table as data.labels")
        codes[tile.path] = _code_of(folder, task, tile.path)
    return codes


def _read_table(
    path: Path, tiles: list[SourceTile], images: Path, data: LabeledDataConfig, task: Task
) -> dict[str, int]:
    """Return the code of each tile by path, for the tiles named in the first column of a table.

    The class is in the column ``data.label_field``, or in the second of two columns, as a code or a name.
    """
    if not path.is_file():
        raise SourceError(f"{path}: not a table of tiles and classes (.csv)")
    text = read_text(path)
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    header, *lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)) or [[]]
    column = _class_column([name.strip() for name in header], data.label_field, path)
    names, codes, missing = TileNames(tiles, images), dict[str, int](), []
    for number, line in enumerate(lines, start=2):
        if not any(cell.strip() for cell in line):
            continue
        if len(line) <= column:
            raise SourceError(f"{path}, line {number}: {len(line)} columns, but the header has {len(header)}")
        tile = names.find(line[0], path)
        if tile is None:
            missing.append(line[0])
            continue
        if tile.path in codes:
            raise SourceError(f"{path}, line {number}: {line[0]} is listed twice: remove one of them")
        codes[tile.path] = _code_of(line[column], task, f"{path}, line {number}")
    if missing:
        raise SourceError(f"{path}: {len(missing)} of {len(lines)} tiles are missing, e.g. {missing[0]}")
    return codes


def _class_column(header: list[str], field: str | None, path: Path) -> int:
    if field is not None and field in header[1:]:
        return header.index(field, 1)
    if field is None and len(header) == 2:
        return 1
    columns = ", ".join(header[1:]) or "none beside the first"
    raise SourceError(
        f"{path}: choose the column that holds the class with --label-field (data.label_field): {columns}"
    )


def _code_of(text: str, task: Task, where: str) -> int:
    """Return the code of a class given by code or name; case is ignored, and ``_`` and ``-`` count as spaces."""
    names = {_plain(name): code for name, code in task.codes_by_name.items()}
    if _plain(text) in names:
        return names[_plain(text)]
    try:
        return int(text)
    except ValueError:
        if task.ignore == "others":
            return NODATA
        known = ", ".join(task.outputs)
        raise SourceError(
            f"{where}: '{text.strip()}' is not a class of task {task.name}: its classes are {known}"
        ) from None


def _plain(name: str) -> str:
    return name.strip().casefold().replace("_", " ").replace("-", " ")
