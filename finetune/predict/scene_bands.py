"""The bands of a scene for a model: those that it was made for, or those of another sensor, resampled to them."""

from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np

from finetune.encoders.model_file import TaskModel
from pretrain.weights.band_input import interpolate
from shards.errors import ConfigError, SourceError, TileError
from shards.sensors.band_table import BandTable
from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import MATCH_TOLERANCE_NM, Sensor, get_sensor
from shards.sources.image import SpectralImage
from shards.sources.scene_sensor import sensor_of_image

Bands = Literal["same", "resample", "native"]
BANDS: tuple[Bands, ...] = get_args(Bands)

FEWEST_COVERED = 0.25
"""The smallest share of a model's bands that a scene must cover."""


def fit_to_scene(model: TaskModel, image: SpectralImage, bands: Bands) -> tuple[TaskModel, list[int]]:
    """Return a model that takes bands of this scene, and the 1-based numbers of these bands.

    Args:
        bands: ``same`` for the model's bands, found by wavelength; ``resample`` for all good bands of the scene, from
            which the model's are computed by Gaussian spectral responses; ``native`` for these bands themselves, for
            encoders by wavelength.

    Raises:
        ConfigError: the model's file doesn't record its bands, the scene gives no wavelengths to resample, or the
            encoder takes no others than its own.
        SourceError: the scene lacks the model's bands, or covers too few of them.
    """
    sensor = scene_sensor(model)
    try:
        if bands == "same":
            return model, image.select(sensor)
        seen = sensor_of_image("scene", image)
        adapt = _resampling if bands == "resample" else _by_wavelength
        return adapt(model, seen, image.name), image.select(seen)
    except TileError as error:
        way = (
            "native gives it the scene's" if model.encoder.by_wavelength else "resample computes them from the scene's"
        )
        hint = f"; --bands {way}" if bands == "same" and image.wavelength_nm else ""
        raise SourceError(f"{error}{hint}") from None


def _resampling(model: TaskModel, seen: Sensor, name: str) -> TaskModel:
    """Return the model with an input that takes the bands of another sensor."""
    inputs = model.inputs
    response = response_matrix(inputs.wavelength_nm, inputs.fwhm_nm, seen.wavelength_nm, seen.fwhm_nm)
    covered, wanted = int(response.any(1).sum()), len(response)
    if covered < FEWEST_COVERED * wanted:
        raise SourceError(
            f"{name}: bands from {min(seen.wavelength_nm):g} to {max(seen.wavelength_nm):g} nm cover {covered} of the "
            f"model's {wanted}: too few for this model"
        )
    if inputs.response is not None:
        response = np.asarray(inputs.response) @ response
    return _with_input(model, seen, response=response.tolist())


def _by_wavelength(model: TaskModel, seen: Sensor, name: str) -> TaskModel:
    """Return the model with an input of other bands, normalized by interpolated statistics."""
    if model.bands is None:
        raise ConfigError(f"--bands native: {model.description.architecture} takes bands of its own only: use resample")
    (known_nm, _), inputs = model.bands, model.inputs
    mu, sigma = (interpolate(seen.wavelength_nm, known_nm, values) for values in (inputs.mu, inputs.sigma))
    return _with_input(model, seen, mu=mu, sigma=sigma, response=None, made_bands=None)


def _with_input(model: TaskModel, seen: Sensor, **changes: Any) -> TaskModel:
    changes |= {"sensor": seen.name, "wavelength_nm": list(seen.wavelength_nm), "fwhm_nm": list(seen.fwhm_nm)}
    adapted = replace(model.inputs, **changes)
    parts = model.head_config, model.head, model.task, model.dilate
    return TaskModel(model.encoder, model.description, adapted, *parts).eval()


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
