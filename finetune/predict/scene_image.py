"""A complete scene, read by rows: an EnMAP L2A product, or any raster with the bands of a model's sensor."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from finetune.encoders.model_file import TaskModel
from shards.errors import ConfigError, SourceError, TileError
from shards.sensors.band_table import BandTable
from shards.sensors.sensor import MATCH_TOLERANCE_NM, Sensor, get_sensor
from shards.sources.grid import Grid
from shards.sources.limits import SceneLimits
from shards.sources.product import METADATA, Metadata, is_product
from shards.sources.raster import Raster, open_raster
from shards.sources.scene import CACHE_BYTES, Scene


@dataclass(frozen=True)
class SceneImage:
    """An open scene.

    Attributes:
        raster: the spectral image.
        bands: one-based indices of the sensor's bands in the raster.
    """

    raster: Raster
    bands: list[int]

    @property
    def grid(self) -> Grid:
        return self.raster.grid

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Read rows ``begin`` to ``end`` as int16 (bands, end - begin, width), NODATA for missing values.

        Raises:
            SourceError: the file is damaged there, or does not hold digital numbers.
        """
        try:
            return self.raster.read(self.bands, Window(0, begin, self.grid.width, end - begin))
        except TileError as error:
            raise SourceError(f"{error} (rows {begin} to {end})") from None


@contextmanager
def open_scene(scene: str | Path, sensor: Sensor) -> Iterator[SceneImage]:
    """Open a product (folder, zip file, or its spectral image) or a raster, matching bands by wavelength.

    Args:
        scene: path, URL, or path inside an archive (``/vsizip/...``).

    Raises:
        SourceError: the scene is missing, is not a raster, or lacks the sensor's bands.
    """
    # Each row of windows rereads the blocks of a row of the file: the cache must hold one row of blocks.
    with rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES), ExitStack() as stack:
        try:
            image = _open_product(Path(scene), sensor, stack) if not is_remote(str(scene)) else None
            image = image or _open_raster(str(scene), sensor, stack)
        except TileError as error:
            raise SourceError(str(error)) from None
        yield image


def is_remote(scene: str) -> bool:
    """Return whether a scene is not a local file with an ordinary path."""
    return "://" in scene or scene.startswith("/vsi")


def _open_product(path: Path, sensor: Sensor, stack: ExitStack) -> SceneImage | None:
    """Open an EnMAP L2A product; return None for any other raster."""
    if not path.exists():
        raise SourceError(f"{path}: no such scene")
    if is_product(path):
        raster, bands, _ = stack.enter_context(Scene(path, path.name, sensor, 1, SceneLimits()).open_image())
        return SceneImage(raster, bands)
    if path.is_dir():
        raise SourceError(f"{path}: not an EnMAP L2A product (there is no *{METADATA} in it): name a raster in it")
    metadata_path = path.with_name(path.name.split("-SPECTRAL_IMAGE")[0] + METADATA)
    if not metadata_path.is_file():
        return None
    metadata = Metadata.parse(metadata_path.read_bytes(), str(metadata_path))
    raster = stack.enter_context(open_raster(path, metadata.wavelength_nm, metadata.background))
    return SceneImage(raster, raster.select(sensor))


def _open_raster(scene: str, sensor: Sensor, stack: ExitStack) -> SceneImage:
    raster = stack.enter_context(open_raster(scene))
    return SceneImage(raster, raster.select(sensor))


def scene_sensor(model: TaskModel) -> Sensor:
    """Return the sensor whose scenes a model accepts: the registered one if it has the model's bands, since it also
    describes the full product, else the model's own bands.

    Raises:
        ConfigError: the model's file doesn't record its bands.
    """
    inputs, count = model.inputs, model.images.bands
    if len(inputs.wavelength_nm) != count:
        raise ConfigError(f"the model takes {count} bands, but its file doesn't say which: convert it with --sensor")
    wavelengths = np.asarray(inputs.wavelength_nm)
    try:
        known = get_sensor(inputs.sensor)
    except ConfigError:  # a custom band table, which may be absent on this machine
        known = None
    if known is not None and known.num_bands == count:
        if np.abs(wavelengths - known.wavelength_nm).max() <= MATCH_TOLERANCE_NM:
            return known
    table = BandTable(tuple(inputs.wavelength_nm), tuple(inputs.fwhm_nm), tuple(range(count)))
    return Sensor.of_table(inputs.sensor, table)
