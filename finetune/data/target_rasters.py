"""Per-pixel targets, such as canopy height or biomass, in rasters next to the images, one band per target."""

from functools import partial
from pathlib import Path

import numpy as np
from rasterio.windows import Window

from finetune.config import LabeledDataConfig
from finetune.data.folders import folders_of, item_of_file, split_tiles
from finetune.data.items import Split
from finetune.tasks import Task
from shards.errors import ConfigError, SourceError, TileError
from shards.sensors.sensor import get_sensor
from shards.sources.alignment import Mismatch, covering_window, find_orientation, resample_values
from shards.sources.grid import Grid
from shards.sources.labels import LARGEST_FLOAT, Align, Labels, read_grid
from shards.sources.layouts import SPLITS, find_tiles
from shards.sources.pairs import find_label, label_prefix
from shards.sources.raster import Raster, open_raster


def find_with_target_rasters(data: LabeledDataConfig, task: Task, seed: int) -> Split:
    """Find tiles in folders with target rasters of the same names, or with one raster for all tiles.

    Raises:
        ConfigError, SourceError: a folder, list, tile or raster is missing.
    """
    if data.shards is not None:
        raise ConfigError(
            f"key 'data.shards': shards contain class codes, but task {task.name} needs values: use data.images"
        )
    images, path = folders_of(data, task)
    if path is None:
        raise ConfigError(f"key 'data.labels': task {task.name} needs a folder or file of target rasters")
    if Labels(path).is_vector or data.label_field or data.label_layer:
        raise SourceError(f"{path}: polygons hold classes: task {task.name} needs rasters of values")
    sensor = get_sensor(task.sensor)
    split = split_tiles(data, find_tiles(images, sensor.name), images, seed)
    prefix = label_prefix(images, sensor.name)

    def read(tile: str) -> np.ndarray:
        raster = path if path.is_file() else path / find_label(path, tile, prefix)
        return read_target(raster, read_grid(images / tile), data.align)

    return {
        name: [item_of_file(tile, images, sensor, partial(read, tile.path)) for tile in split[name]] for name in SPLITS
    }


def read_target(path: Path, grid: Grid, align: Align | None = None) -> np.ndarray:
    """Read a raster of values on an image's grid.

    Args:
        align: ``nearest`` resamples a raster on another grid than the image's.

    Returns:
        float32 (bands, height, width), after the file's scale and offset; NaN for missing values: the nodata value,
        masks, the alpha band, NaN, and the lowest float32.

    Raises:
        TileError: the raster is unreadable or on another grid; one line.
    """
    with open_raster(path) as raster:
        try:
            return _read(raster, grid, align).astype(np.float32)
        except TileError as error:
            line = str(error)
            raise TileError(line if line.startswith(raster.name) else f"{raster.name}: {line}") from None


def _read(raster: Raster, grid: Grid, align: Align | None) -> np.ndarray:
    native = raster.grid
    try:
        orientation = find_orientation(native, grid)
        return np.stack([orientation.apply(band) for band in _values(raster)])
    except Mismatch as mismatch:
        if align is None or not mismatch.covers:
            raise
    window = Window.from_slices(*covering_window(native, grid))
    origin = (window.row_off, window.col_off)
    return np.stack([resample_values(band, native, grid, np.nan, origin) for band in _values(raster, window)])


def _values(raster: Raster, window: Window | None = None) -> np.ndarray:
    """Read all bands as float64, with NaN for missing values."""
    stored = raster.file.read(raster.bands, window=window, masked=True)
    values = stored.astype(np.float64).filled(np.nan)
    values[~(np.abs(values) < LARGEST_FLOAT)] = np.nan
    scales, offsets = (
        np.array([of[band - 1] for band in raster.bands])[:, None, None]
        for of in (raster.file.scales, raster.file.offsets)
    )
    return values * scales + offsets
