"""Small synthetic copies of the downstream tasks' downloads, with the same folders, names, bands, dtypes and lists.

::

    DEST/<folder>/<images>/<location>/<scene>.tif   the sensor's bands, int16, pixel-interleaved
    DEST/<folder>/<labels>/<location>/<scene>.tif   codes of the task, in a common dtype of such maps; values for a
                                                    pixel regression
    DEST/<folder>/labels.csv                        tile and class, for a classification
    DEST/hyperview/images/<number>.npz              array "data" (150, h, w) of any size
    DEST/splits/<task>/{train,val,test}.txt         or train.csv and val.csv for hyperview

Scores on them only show that the workflow runs.
"""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import Affine

from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from shards.errors import ConfigError
from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import NODATA, get_sensor
from tools.sample_tiles import PIXEL_M, Visit, make_place, render

MASK_DTYPES = {"enmap_eurocrops": "float64", "enmap_corine": "int16", "enmap_treemap": "uint16"}
"""Dtypes of label tiles; all others are uint8."""

SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}
SCENES = 4
COLUMNS = ("sample_index", "company", "field", "cover", "sampling", "lab_method", "date", "year")


def make_task_sample(dest: Path, task: Task, tiles: int = 15, size: int = 32, seed: int = 0) -> str:
    """Write a task's copy below ``dest`` and return a summary line.

    Raises:
        ConfigError: the task has no layout, or its copy already exists.
    """
    if task.layout is None:
        raise ConfigError(f"task {task.name} has no layout of a download to copy")
    folder, splits = dest / task.layout.folder, dest / "splits" / task.name
    if folder.exists() or splits.exists():
        raise ConfigError(
            f"{folder if folder.exists() else splits}: already exists; remove it or choose another folder"
        )
    splits.mkdir(parents=True)
    images, source = folder / task.layout.images, kind_of(task).labels_from
    if source == "tables":
        _make_tables(images, splits, task, tiles, seed)
    else:
        assert task.layout.labels is not None
        write = {"rasters": _write_codes, "tile_classes": _write_class, "target_rasters": _write_values}[source]
        _make_tiles(images, partial(write, folder / task.layout.labels, task), splits, task, tiles, size, seed)
    return f"{folder}: {tiles} synthetic tiles of {task.title or task.name}, lists in {splits}"


def _make_tiles(
    images: Path, write_label: "WriteLabel", splits: Path, task: Task, tiles: int, size: int, seed: int
) -> None:
    names = []
    for number in range(tiles):
        names.append(f"{1000 + 37 * number:07d}/{4134 + number % SCENES:05d}.tif")
        rng = np.random.default_rng([seed, number])
        values, materials = _render(rng, task, size)
        grid = Affine(PIXEL_M, 0.0, 300000.0 + 5000.0 * number, 0.0, -PIXEL_M, 5800000.0)
        _write(images / names[-1], values, grid)
        write_label(names[-1], number, values, materials, grid)
    cuts = np.cumsum([round(SHARES["train"] * tiles), round(SHARES["val"] * tiles)])
    for split, part in zip(SHARES, np.split(np.array(names), cuts), strict=True):
        (splits / f"{split}.txt").write_text("\n".join(part.tolist()))  # no trailing newline, as in some lists


WriteLabel = Callable[[str, int, np.ndarray, np.ndarray, Affine], None]
"""Writes the label of a tile, given its name, number, values (bands, size, size), materials (size, size) and grid."""


def _write_codes(
    labels: Path, task: Task, name: str, number: int, values: np.ndarray, materials: np.ndarray, grid: Affine
) -> None:
    _write(labels / name, _codes(task, materials, number)[None], grid)


def _write_class(
    table: Path, task: Task, name: str, number: int, values: np.ndarray, materials: np.ndarray, grid: Affine
) -> None:
    """Add a line with the dominant material of the tile."""
    most = int(np.bincount(materials.ravel(), minlength=7)[1:].argmax())
    with open(table, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if number == 0:
            writer.writerow(["tile", "class"])
        writer.writerow([name, task.outputs[most]])


def _write_values(
    labels: Path, task: Task, name: str, number: int, values: np.ndarray, materials: np.ndarray, grid: Affine
) -> None:
    """Write the greenness of each pixel in hundredths as int16, with nodata for unmeasured pixels."""
    wavelength = np.asarray(get_sensor(task.sensor).wavelength_nm)
    red, infrared = (values[np.abs(wavelength - nm).argmin()].astype(np.float64) for nm in (660, 850))
    index = (infrared - red) / np.maximum(infrared + red, 1)
    greenness = np.rint(100 * np.clip(100 * (index - 0.1) / 0.7, 0, 100))
    stored = np.where((values == NODATA).any(0), -1, greenness).astype(np.int16)
    _write(labels / name, stored[None], grid, nodata=-1)
    with rasterio.open(labels / name, "r+") as file:
        file.scales = (0.01,)


def _render(rng: np.random.Generator, task: Task, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a tile of the task's sensor, int16 (bands, size, size), and materials (size, size), 0 where mixed."""
    visit = Visit(scene=1, season=float(rng.uniform(0, 0.5)), margin=bool(rng.random() < 0.1))
    values, materials = render(rng, make_place(rng, size), visit)
    enmap, sensor = get_sensor("enmap"), get_sensor(task.sensor)
    if sensor is not enmap:
        matrix = response_matrix(sensor.wavelength_nm, sensor.fwhm_nm, enmap.wavelength_nm, enmap.fwhm_nm)
        beyond = np.flatnonzero(~matrix.any(1))  # bands that EnMAP's tiles don't cover: copy the nearest covered one
        distance = np.abs(np.asarray(sensor.wavelength_nm)[beyond, None] - enmap.wavelength_nm)
        matrix[beyond, distance.argmin(1)] = 1
        missing = values[0] == np.iinfo(np.int16).min
        mixed = np.tensordot(matrix, values.astype(np.float64), 1)
        values = np.where(missing, np.iinfo(np.int16).min, np.rint(mixed)).astype(np.int16)
    return values, materials


def _codes(task: Task, materials: np.ndarray, number: int) -> np.ndarray:
    """Map material m of tile n to the code of class m - 1 + 6 n, so that all classes occur; 0 stays 0."""
    firsts = [task_class.all_codes[number % len(task_class.all_codes)] for task_class in task.classes]
    table = [0, *(firsts[(material + 6 * number) % len(firsts)] for material in range(6))]
    return np.array(table, dtype=MASK_DTYPES.get(task.name, "uint8"))[materials]


def _write(path: Path, values: np.ndarray, grid: Affine, nodata: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands, height, width = values.shape
    options = {"driver": "GTiff", "interleave": "pixel", "crs": "EPSG:32633", "transform": grid, "nodata": nodata}
    with rasterio.open(path, "w", count=bands, height=height, width=width, dtype=values.dtype, **options) as file:
        file.write(values)


def _make_tables(images: Path, splits: Path, task: Task, tiles: int, seed: int) -> None:
    """Write fields of varying sizes whose targets depend on their mean spectra."""
    images.mkdir(parents=True)
    rows = []
    for number in range(tiles):
        rng = np.random.default_rng([seed, number])
        values, _ = _render(rng, task, 32)
        height, width = rng.integers(8, 33, 2)
        field = np.maximum(values[:, :height, :width], 0)
        np.savez(images / f"{number}.npz", data=field.astype(np.uint16))
        spectrum = field.mean((1, 2)) / 3000
        targets = [spectrum[10] - 0.3, spectrum[60] - 0.4, spectrum[110] - 0.9, spectrum[140] - spectrum[60]]
        metadata = [number, "A", number // 2, 0.0, 1.0, "Mehlich3", "2020-08-01T00:00:00", 2020]
        rows.append([*metadata, *(float(target) for target in targets[: len(task.outputs)])])
    cut = round((SHARES["train"] + SHARES["val"]) * tiles)
    for split, part in (("train", rows[:cut]), ("val", rows[cut:])):
        with open(splits / f"{split}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow([*COLUMNS, *task.outputs])
            writer.writerows(part)
