"""The sensor of a dataset: a registered one, a band table, or the bands of a scene that describes its own."""

from pathlib import Path

import numpy as np

from shards.errors import ConfigError, SourceError, TileError
from shards.sensors.band_table import BandTable
from shards.sensors.sensor import Sensor, get_sensor, sensor_names
from shards.sensors.spectrum import widths_by_spacing
from shards.sources.image import SpectralImage
from shards.sources.images import open_image


def find_sensor(name: str) -> Sensor:
    """Return the sensor with this name, with the band table in this CSV file, or with the bands of this scene.

    Raises:
        ConfigError: the name is unknown, or the file is neither a band table nor a scene with wavelengths.
    """
    path = Path(name)
    if name in sensor_names() or path.suffix.lower() == ".csv" or not path.exists():
        return get_sensor(name)
    try:
        with open_image(path) as image:
            return sensor_of_image(path.stem, image)
    except SourceError as error:
        raise ConfigError(f"--sensor: {error}") from None
    except TileError:  # no raster: a band table with another extension
        return get_sensor(name)


def sensor_of_image(name: str, image: SpectralImage) -> Sensor:
    """Return a sensor with the bands of an image in ascending order of wavelength; its bad bands are left out.

    Raises:
        ConfigError: the image gives no wavelengths.
    """
    if image.wavelength_nm is None:
        raise ConfigError(f"--sensor: {image.name}: gives no wavelengths: name a band table (CSV) instead")
    centers = np.asarray(image.wavelength_nm)
    known = np.flatnonzero(np.isfinite(centers))
    order = known[np.argsort(centers[known], kind="stable")]
    widths = widths_by_spacing(centers[order]) if image.fwhm_nm is None else np.asarray(image.fwhm_nm)[order]
    kept = np.flatnonzero(np.asarray(image.good)[order])
    if not len(kept):
        raise ConfigError(f"--sensor: {image.name}: all of its bands are bad ones: name a band table (CSV) instead")
    columns = (tuple(column.tolist()) for column in (centers[order], widths, kept))
    return Sensor.of_table(name, BandTable(*columns))
