"""A whole scene, read by rows: an EnMAP L2A product, or any GeoTIFF with the bands of a model's sensor."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from finetune.model_file import TaskModel
from shards.errors import ConfigError, SourceError, TileError
from shards.geotiff import GDAL_OPTIONS, as_int16, band_wavelengths, open_geotiff
from shards.scene import CACHE_BYTES, METADATA, Metadata, Scene, SceneLimits, is_product
from shards.sensors import MATCH_TOLERANCE_NM, Sensor, get_sensor


@dataclass(frozen=True)
class SceneImage:
    """An open scene.

    Attributes:
        file: rasterio dataset of the spectral image.
        bands: numbers of the sensor's bands in it, from 1.
        nodata: the file's value of "no measurement"; None where it has none.
    """

    file: Any
    bands: list[int]
    nodata: float | None

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.file.height, self.file.width

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Rows ``begin`` to ``end`` as int16 (bands, end - begin, width), NODATA where nothing was measured.

        Raises:
            SourceError: the file is damaged there, or holds something else than digital numbers.
        """
        try:
            values = self.file.read(self.bands, window=Window(0, begin, self.file.width, end - begin))
            return as_int16(values, self.nodata)
        except TileError as error:
            raise SourceError(f"{self.file.name}: {error}") from None
        except RasterioError as error:
            raise SourceError(f"{self.file.name}: can't be read in rows {begin} to {end}: {_cause(error)}") from None


@contextmanager
def open_scene(path: Path, sensor: Sensor) -> Iterator[SceneImage]:
    """Open a product (folder, zip file, or its spectral image) or a GeoTIFF, by the wavelengths that it names.

    Raises:
        SourceError: missing, no GeoTIFF, or bands that are not the sensor's.
    """
    # Blocks of a row of the file are read again for every row of windows: the cache has to hold one row of them.
    with rasterio.Env(**GDAL_OPTIONS, GDAL_CACHEMAX=CACHE_BYTES):
        scene = _open(path, sensor)
        with scene.file:
            yield scene


def _open(path: Path, sensor: Sensor) -> SceneImage:
    if not path.exists():
        raise SourceError(f"{path}: no such scene")
    if is_product(path):
        file, bands, metadata = Scene(path, path.name, sensor, 1, SceneLimits()).open_image()
        return SceneImage(file, bands, metadata.background if file.nodata is None else file.nodata)
    if path.is_dir():
        raise SourceError(f"{path}: no EnMAP L2A product (there is no *{METADATA} in it): name a GeoTIFF")
    metadata_path = path.with_name(path.name.split("-SPECTRAL_IMAGE")[0] + METADATA)
    told = Metadata.parse(metadata_path.read_bytes(), str(metadata_path)) if metadata_path.is_file() else None
    try:
        file = open_geotiff(path)
        found = sensor.select_bands(file.count, told.wavelength_nm if told else band_wavelengths(file))
    except TileError as error:
        raise SourceError(f"{path}: {error}") from None
    except (RasterioError, ValueError) as error:
        raise SourceError(f"{path}: not a readable GeoTIFF ({_cause(error)})") from None
    bands, background = [int(band) + 1 for band in found], told.background if told else None
    return SceneImage(file, bands, background if file.nodata is None else file.nodata)


def scene_sensor(model: TaskModel) -> Sensor:
    """The sensor whose scenes a model takes: that of the registry where it has the model's bands, for it knows the
    full product too; else the model's own bands.

    Raises:
        ConfigError: the model's file doesn't say which bands it takes.
    """
    told, count = model.inputs, model.images.bands
    if len(told.wavelength_nm) != count:
        raise ConfigError(f"the model takes {count} bands and its file doesn't say which: convert it with --sensor")
    own = np.asarray(told.wavelength_nm)
    try:
        known = get_sensor(told.sensor)
    except ConfigError:  # a band table of one's own, which need not be on this machine
        known = None
    if known is not None and known.num_bands == count:
        if np.abs(own - known.wavelength_nm).max() <= MATCH_TOLERANCE_NM:
            return known
    centres = tuple(told.wavelength_nm)
    return Sensor(told.sensor, centres, tuple(told.fwhm_nm), centres, tuple(range(count)), 10000.0, (0, 0, 0))


def _cause(error: Exception) -> str:
    return (str(error.__cause__ or error) or type(error).__name__).splitlines()[0]
