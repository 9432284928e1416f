"""Labelled tiles: image and mask of the same relative name, cut into windows of the encoder's image size."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from finetune.config import LabelledDataConfig
from finetune.tasks import Task
from shards.errors import SourceError
from shards.geotiff import read_mask, read_tile
from shards.sensors import NODATA, get_sensor
from shards.sources import SPLITS, find_tiles, published_split, split_by_location


@dataclass(frozen=True)
class LabelledWindows:
    """One split in memory.

    Attributes:
        images: int16 (N, C, S, S).
        labels: int64 (N, S, S), class indices; C of the task where nothing counts.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def load_splits(data: LabelledDataConfig, task: Task, size: int, seed: int, quiet: bool) -> dict[str, LabelledWindows]:
    """Read all labelled tiles and cut them into windows of ``size`` pixels, by split.

    Raises:
        SourceError: a tile of a split is missing, has no label, or a split is empty.
        TileError: a file is unreadable or of the wrong bands.
    """
    images, labels = Path(data.images), Path(data.labels)
    if not labels.is_dir():
        raise SourceError(f"{labels}: no such directory of label tiles")
    tiles = find_tiles(images, data.sensor)
    split = published_split(Path(data.splits), tiles) if data.splits else split_by_location(tiles, seed)
    sensor = get_sensor(data.sensor)
    loaded = {}
    for name in SPLITS:
        if not split[name]:
            raise SourceError(f"{images}: no tiles in the '{name}' split ({len(tiles)} tiles found)")
        windows = []
        for tile in tqdm(split[name], desc=f"read {name}", unit="tile", disable=quiet, mininterval=1.0):
            values = read_tile(images / tile.path, sensor).values
            codes = _mask_of(labels, tile.path, values.shape[1:])
            windows.append(cut_windows(values, task.to_indices(codes), size, task.ignore_index))
        loaded[name] = LabelledWindows(*(np.concatenate(parts) for parts in zip(*windows, strict=True)))
    return loaded


def cut_windows(values: np.ndarray, labels: np.ndarray, size: int, ignore: int) -> tuple[np.ndarray, np.ndarray]:
    """(C, H, W) and (H, W) to windows (N, C, size, size) and (N, size, size); the rim is padded and not counted."""
    bands, height, width = values.shape
    pad = ((0, -height % size), (0, -width % size))
    values = np.pad(values, ((0, 0), *pad), constant_values=NODATA)
    labels = np.pad(labels, pad, constant_values=ignore)
    rows, columns = values.shape[1] // size, values.shape[2] // size
    images = values.reshape(bands, rows, size, columns, size).transpose(1, 3, 0, 2, 4)
    masks = labels.reshape(rows, size, columns, size).transpose(0, 2, 1, 3)
    return images.reshape(-1, bands, size, size), masks.reshape(-1, size, size)


def _mask_of(labels: Path, relative: str, shape: tuple[int, ...]) -> np.ndarray:
    path = labels / relative
    if not path.exists():
        raise SourceError(f"{path}: no label tile for this image")
    codes = read_mask(path)
    if codes.shape != shape:
        raise SourceError(f"{path}: {codes.shape} px where the image has {shape}")
    return codes
