"""The folders that hold the images and labels of a task, and the tiles in them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from finetune.config import LabeledDataConfig
from finetune.data.items import Item
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError
from shards.sensors.sensor import Sensor
from shards.sources.geotiff import read_tile
from shards.sources.pairs import published_split, scene_of, split_by_location
from shards.sources.tile_names import SourceTile


def folders_of(data: LabeledDataConfig, task: Task) -> tuple[Path, Path | None]:
    """Return the image folder, and the label folder or file.

    Raises:
        ConfigError, SourceError: the task has no layout, or a folder is missing.
    """
    labels: Path | None
    if data.root is None:
        images, labels = Path(data.images or ""), Path(data.labels) if data.labels else None
    elif task.layout is None:
        raise ConfigError(f"key 'data.root': task {task.name} has no layout: give 'data.images' and 'data.labels'")
    else:
        root = Path(data.root)
        below = root / task.layout.folder
        root = below if below.is_dir() else root
        images = root / task.layout.images
        labels = root / task.layout.labels if task.layout.labels else None
    if not images.is_dir():
        raise SourceError(f"{images}: no such folder of images")
    if labels is not None and not labels.exists():
        raise SourceError(f"{labels}: no such folder of labels")
    return images, labels


def split_tiles(
    data: LabeledDataConfig, tiles: list[SourceTile], images: Path, seed: int
) -> dict[str, list[SourceTile]]:
    """Split tiles by the lists of ``data.splits``, or 60/20/20 by location."""
    return published_split(Path(data.splits), tiles, images) if data.splits else split_by_location(tiles, seed)


def item_of_file(
    tile: SourceTile, images: Path, sensor: Sensor, label: Callable[[], np.ndarray], **options: Any
) -> Item:
    """Return the item of a tile that is a file below ``images``.

    Args:
        options: further fields of the item.
    """
    file = images / tile.path
    reader = partial(_read_image, file, sensor)
    return Item(tile.path, tile.location, scene_of(tile), "", reader, label, file=file, **options)


def _read_image(path: Path, sensor: Sensor) -> np.ndarray:
    return read_tile(path, sensor).values
