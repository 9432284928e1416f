"""Cut a classic scene into the tiles of its task: `python -m finetune cut TASK FILES... OUT`.

The scene's arrays are found in its public files by their shape: the cube, and a label map or the abundances of each
pixel. Tiles and labels are written as GeoTIFFs of the same names, with the wavelengths of the bands, and the published
split as lists of these names.
"""

import argparse
import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from finetune.tasks import Task, dump_task, get_task
from finetune.tasks.scene import Scene
from shards.errors import ConfigError, SourceError
from shards.files.atomic import atomic_path, write_atomic
from shards.files.untrusted import read_npz
from shards.sensors.band_table import read_band_table
from shards.sensors.sensor import NODATA, Sensor, get_sensor
from shards.sources.layouts import SPLITS

LARGEST = np.iinfo(np.int16).max


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("task", help="name or YAML file of a task that has a scene")
    parser.add_argument("files", nargs="+", type=Path, help="its public files: .mat, .npz, or rasters (GeoTIFF, ENVI)")
    parser.add_argument("out", type=Path, help="folder for images/, labels/ and splits/")
    parser.add_argument("--bands", type=Path, help="CSV table of the bands, in the place of the task's")


def run(arguments: argparse.Namespace) -> int:
    """Cut a scene and print what was written."""
    task = get_task(arguments.task)
    if task.scene is None:
        raise ConfigError(f"task {task.name} has no scene to cut: its data are tiles already")
    sensor = _sensor(task, task.scene, arguments.bands)
    for line in cut_scene(task, task.scene, sensor, arguments.files, arguments.out):
        print(line)
    name = arguments.task
    if arguments.bands is not None:
        name = arguments.out / f"{task.name}.yaml"
        write_atomic(arguments.out / "bands.csv", arguments.bands.read_bytes())
        write_atomic(name, dump_task(task.model_copy(update={"sensor": "bands.csv"})))
    folders = " ".join(f"--{folder} {arguments.out / folder}" for folder in ("images", "labels", "splits"))
    print(f"check with: python -m finetune check {name} {folders}")
    return 0


def _sensor(task: Task, scene: Scene, table: Path | None) -> Sensor:
    """Return the sensor with the bands of ``table``, or by default with those of the task."""
    if table is not None:
        sensor = Sensor.of_table(task.name, read_band_table(table))
    elif task.sensor.endswith(".csv") and not Path(task.sensor).exists():
        raise ConfigError(
            f"task {task.name}: the wavelengths of its bands are not published with it: give a table of them by "
            "--bands (CSV with the columns wavelength_nm and fwhm_nm)"
        )
    else:
        sensor = get_sensor(task.sensor)
    if sensor.num_bands != scene.shape[2]:
        raise ConfigError(f"{table or task.sensor}: {sensor.num_bands} bands, the scene has {scene.shape[2]}")
    return sensor


def cut_scene(task: Task, scene: Scene, sensor: Sensor, files: list[Path], out: Path) -> Iterator[str]:
    """Write images, labels and lists of the splits below ``out``, and yield lines that say what was written.

    Raises:
        SourceError: a file is unreadable, or not exactly one array has the shape of the cube, or of the labels.
    """
    arrays = _arrays(files)
    cube, missing = _digital_numbers(_find(arrays, scene, scene.shape[2], "cube"), scene.factor)
    labels = _labels(arrays, task, scene)
    for folder in ("images", "labels", "splits"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for row, column in itertools.product(*map(range, scene.grid)):
        window = np.s_[:, row * scene.tile : (row + 1) * scene.tile, column * scene.tile : (column + 1) * scene.tile]
        name = _name(task, row, column)
        _write(out / "images" / name, cube[window], sensor, NODATA)
        _write(out / "labels" / name, labels[window])
    for split in SPLITS:
        names = [_name(task, row, column) for row, column in scene.tiles_of(split)]
        write_atomic(out / "splits" / f"{split}.txt", "\n".join(names) + "\n")
    counts = ", ".join(f"{len(scene.tiles_of(split))} {split}" for split in SPLITS)
    rows, columns = scene.grid
    yield f"{out}: {rows} x {columns} tiles of {scene.tile} px: {counts}, all others between them"
    if missing:
        yield f"{missing:,} values are missing: they are beyond int16, or not numbers"


def read_labels(task: Task, scene: Scene, files: list[Path]) -> np.ndarray:
    """Read codes (1, rows, columns) in int16, or targets (targets, rows, columns) in float32, from a scene's files.

    Raises:
        SourceError: a file is unreadable, or not exactly one array has the shape of the labels.
    """
    return _labels(_arrays(files), task, scene)


def _arrays(files: list[Path]) -> dict[str, np.ndarray]:
    return {f"{file}: {name}": array for file in files for name, array in read_arrays(file).items()}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a file by name: ``.npz``, MATLAB's ``.mat``, or any raster as (rows, columns, bands).

    Raises:
        SourceError: the file is missing or unreadable.
    """
    if not path.is_file():
        raise SourceError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".npz":
            arrays = read_npz(path)
        elif path.suffix.lower() == ".mat":
            arrays = _read_mat(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                with rasterio.open(path) as raster:
                    values = np.moveaxis(raster.read(), 0, 2)
            arrays = {"raster": values[:, :, 0] if values.shape[2] == 1 else values}
    except (OSError, ValueError, RasterioError) as error:
        raise SourceError(f"{path}: not readable ({str(error).splitlines()[0] if str(error) else error!r})") from None
    return {name: array for name, array in arrays.items() if array.dtype.kind in "buif" and array.ndim in (2, 3)}


def _read_mat(path: Path) -> dict[str, np.ndarray]:
    if h5py.is_hdf5(path):  # MATLAB 7.3, with the axes in reverse
        with h5py.File(path) as file:
            return {name: np.array(data).T for name, data in file.items() if isinstance(data, h5py.Dataset)}
    try:
        from scipy.io import loadmat
    except ImportError:
        raise SourceError(f"{path}: needs SciPy: pip install 'spectralforge[baselines]'") from None
    try:
        found = loadmat(path)
    except Exception as error:  # damage can raise any error
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return {name: array for name, array in found.items() if isinstance(array, np.ndarray)}


def _find(arrays: dict[str, np.ndarray], scene: Scene, layers: int | None, what: str) -> np.ndarray:
    """Return the one array with ``layers`` values a pixel, (rows, columns, layers), or (rows, columns) for None.

    Scenes for unmixing are matrices (layers, pixels) in MATLAB's order: column by column.
    """
    rows, columns, _ = scene.shape
    shape = (rows, columns) if layers is None else (rows, columns, layers)
    fitting = {name: array for name, array in arrays.items() if array.shape in (shape, (layers, rows * columns))}
    if len(fitting) != 1:
        found = ", ".join(f"{name} {'x'.join(map(str, array.shape))}" for name, array in arrays.items())
        raise SourceError(
            f"{len(fitting)} arrays have the shape of the {what}, {'x'.join(map(str, shape))}"
            f"{f' or {layers}x{rows * columns}' if layers else ''}; give files with exactly one of them; found: {found}"
        )
    (array,) = fitting.values()
    return array if array.shape == shape else array.T.reshape(shape, order="F")


def _digital_numbers(cube: np.ndarray, factor: float) -> tuple[np.ndarray, int]:
    """Return (bands, rows, columns) in int16, and how many values it can't hold, which are missing."""
    values = cube if factor == 1.0 and cube.dtype.kind != "f" else np.rint(cube * factor)
    fits = (values > NODATA) & (values <= LARGEST)
    return np.moveaxis(np.where(fits, values, NODATA).astype(np.int16), 2, 0), int((~fits).sum())


def _labels(arrays: dict[str, np.ndarray], task: Task, scene: Scene) -> np.ndarray:
    outputs = len(task.targets) if task.targets else None
    labels = _find(arrays, scene, outputs, "labels")
    if outputs is not None:
        return np.moveaxis(labels, 2, 0).astype(np.float32)
    codes = labels.astype(np.int16)
    if not np.array_equal(codes, labels):
        raise SourceError("the label map has values that are not codes of classes")
    return codes[None]


def _name(task: Task, row: int, column: int) -> str:
    return f"{task.name}_{row:02d}_{column:02d}.tif"


def _write(path: Path, values: np.ndarray, sensor: Sensor | None = None, nodata: int | None = None) -> None:
    bands, height, width = values.shape
    profile = {"driver": "GTiff", "dtype": values.dtype, "count": bands, "height": height, "width": width}
    with atomic_path(path) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(temporary, "w", **profile, nodata=nodata) as file:
            file.write(values)
            for band in range(bands if sensor else 0):
                assert sensor is not None
                center, width_nm = sensor.wavelength_nm[band], sensor.fwhm_nm[band]
                file.update_tags(band + 1, wavelength=str(center), fwhm=str(width_nm), wavelength_units="nm")
