"""Labelled tiles: image and mask of the same relative name, cut into windows of the encoder's image size."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from finetune.config import LabelledDataConfig
from finetune.tasks import Task
from shards.errors import SourceError
from shards.geotiff import read_mask, read_tile
from shards.reader import TileDataset, open_dataset
from shards.sensors import NODATA, get_sensor
from shards.sources import SPLITS, TileSource, find_tiles, published_split, split_by_location


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


Tiles = dict[str, Iterable[tuple[np.ndarray, np.ndarray]]]
"""By split: int16 (C, H, W) values and integer (H, W) label codes of each tile."""


def load_splits(data: LabelledDataConfig, task: Task, size: int, seed: int, quiet: bool) -> dict[str, LabelledWindows]:
    """Read all labelled tiles and cut them into windows of ``size`` pixels, by split.

    Raises:
        SourceError: a tile of a split is missing, has no label, or a split is empty.
        TileError, ShardError: a file is unreadable or of the wrong bands.
    """
    tiles = _from_shards(data.shards) if data.shards else _from_files(data, seed)
    loaded = {}
    for name in SPLITS:
        windows = [
            cut_windows(values, task.to_indices(codes), size, task.ignore_index)
            for values, codes in tqdm(tiles[name], desc=f"read {name}", unit="tile", disable=quiet, mininterval=1.0)
        ]
        loaded[name] = LabelledWindows(*(np.concatenate(parts) for parts in zip(*windows, strict=True)))
    return loaded


def _from_files(data: LabelledDataConfig, seed: int) -> Tiles:
    images, labels = Path(data.images or ""), Path(data.labels or "")
    if not labels.is_dir():
        raise SourceError(f"{labels}: no such directory of label tiles")
    found = find_tiles(images, data.sensor)
    split = published_split(Path(data.splits), found) if data.splits else split_by_location(found, seed)
    sensor = get_sensor(data.sensor)

    def read(sources: list[TileSource]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for tile in sources:
            values = read_tile(images / tile.path, sensor).values
            yield values, _mask_of(labels, tile.path, values.shape[1:])

    for name in SPLITS:
        if not split[name]:
            raise SourceError(f"{images}: no tiles in the '{name}' split ({len(found)} tiles found)")
    return {name: read(split[name]) for name in SPLITS}


def _from_shards(location: str) -> Tiles:
    def read(dataset: TileDataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for position, values in enumerate(dataset):
            codes = dataset.mask(position)
            if codes is None:
                key = dataset.table["key"][position].decode()
                raise SourceError(f"{location}: tile '{key}' has no label tile; pack it again with --labels")
            yield values, codes.astype(np.int64)

    split = {name: open_dataset(location, split=name) for name in SPLITS}
    for name, dataset in split.items():
        if not len(dataset):
            raise SourceError(f"{location}: no tiles in the '{name}' split; pack with --labels, perhaps with --splits")
    return {name: read(dataset) for name, dataset in split.items()}


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
