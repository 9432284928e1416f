"""Per-pixel class codes, read from rasters next to the images, from polygons, or from labeled shards."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np

from finetune.config import LabeledDataConfig
from finetune.data.folders import folders_of, item_of_file, split_tiles
from finetune.data.items import Item, Split
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError
from shards.read.reader import TileDataset, open_dataset
from shards.sensors.sensor import NODATA, Sensor, get_sensor
from shards.sources.labels import Labels, declared_nodata, read_grid
from shards.sources.layouts import SPLITS, find_tiles
from shards.sources.pairs import check_labels, find_label, label_prefix, scene_of
from shards.sources.tile_names import SourceTile


def find_with_label_rasters(data: LabeledDataConfig, task: Task, seed: int) -> Split:
    """Find tiles in folders with label rasters or polygons, or in shards.

    Raises:
        ConfigError, SourceError: a folder, list, tile or label is missing.
    """
    if data.shards is not None:
        return find_in_shards(data.shards)
    images, labels = folders_of(data, task)
    if labels is None:
        raise ConfigError(f"key 'data.labels': task {task.name} needs a folder or file of labels beside data.images")
    source = labels_of(data, labels, task)
    sensor = get_sensor(task.sensor)
    tiles = find_tiles(images, sensor.name)
    split = split_tiles(data, tiles, images, seed)
    check_labels(source, [images / tile.path for name in SPLITS for tile in split[name]])
    prefix = label_prefix(images, sensor.name)
    return {name: [_item(tile, images, source, prefix, sensor) for tile in split[name]] for name in SPLITS}


def labels_of(data: LabeledDataConfig, path: Path, task: Task) -> Labels:
    """Return the reader of a task's labels for a folder or file."""
    return Labels(
        path=path,
        align=data.align,
        field=data.label_field,
        layer=data.label_layer,
        names=task.codes_by_name,
        unnamed=NODATA if task.ignore == "others" else None,
    )


def _item(tile: SourceTile, images: Path, labels: Labels, prefix: str, sensor: Sensor) -> Item:
    label = partial(_label_of, labels, tile.path, prefix)
    codes = partial(_read_labels, labels, label, images / tile.path)
    return item_of_file(tile, images, sensor, codes, nodata=partial(_declared_nodata, labels, label))


def _label_of(labels: Labels, image: str, prefix: str) -> str:
    """Return the label tile of an image, relative to the folder of labels."""
    return "" if labels.one_file else find_label(labels.path, image, prefix)


def _read_labels(labels: Labels, label: Callable[[], str], image: Path) -> np.ndarray:
    return labels.read(label(), read_grid(image))


def _declared_nodata(labels: Labels, label: Callable[[], str]) -> int | None:
    return None if labels.is_vector else declared_nodata(labels.path / label())


def declared_line(codes: Iterable[int]) -> str:
    """Return the line that lists class codes which label files declare as their nodata value."""
    listed = ", ".join(f"{codes[code]:,} px of {code}" if isinstance(codes, Counter) else str(code) for code in codes)
    return (
        f"label files declare a class code as nodata, so it doesn't count ({listed}); if it is a class, remove the "
        "declaration: gdal_edit.py -unsetnodata LABEL"
    )


def find_in_shards(location: str) -> Split:
    """Find the tiles of labeled shards."""
    return {name: _items_of_dataset(open_dataset(location, split=name), location) for name in SPLITS}


def _items_of_dataset(dataset: TileDataset, location: str) -> list[Item]:
    names = {field: [value.decode() for value in dataset.table[field]] for field in ("key", "location", "timestamp")}
    scenes = [value.decode() for value in dataset.table["scene"]]
    return [
        Item(
            name=key,
            place=names["location"][row],
            scene=scene_of(SourceTile(names["location"][row], names["timestamp"][row], "", scenes[row])),
            identity=dataset.manifest.content_hash,
            image=partial(dataset.__getitem__, row),
            label=partial(_mask_of_dataset, dataset, row, f"{location}: tile '{key}'"),
            lonlat=(float(dataset.table["lon"][row]), float(dataset.table["lat"][row])),
        )
        for row, key in enumerate(names["key"])
    ]


def _mask_of_dataset(dataset: TileDataset, row: int, where: str) -> np.ndarray:
    codes = dataset.mask(row)
    if codes is None:
        raise SourceError(f"{where} has no label tile; pack it again with --labels")
    return codes.astype(np.int64)
