"""The encoder of an evaluation: its file, the window size for the tiles, and the mapping of their bands."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from finetune.baselines.registry import SPECTRA
from finetune.config import FinetuneConfig, LabeledDataConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.items import Split
from finetune.encoders.band_sets import BandSet
from finetune.encoders.features import encoder_hash
from finetune.encoders.images import check_same_bands
from finetune.encoders.model_file import InputDescription
from finetune.encoders.raw_spectra import RAW
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.batchnorm import grouped_batch_norms
from pretrain.models.encoder import Encoder
from pretrain.models.initialize import initialize
from pretrain.models.registry import outline_encoder
from pretrain.weights.band_input import interpolate
from pretrain.weights.description import EncoderDescription
from pretrain.weights.files import load_encoder
from shards.errors import ConfigError
from shards.files.untrusted import read_npy
from shards.format.manifest import sensor_of
from shards.read.reader import open_dataset
from shards.sensors.resampling import response_matrix
from shards.sensors.sensor import NODATA, Sensor, get_sensor


@dataclass(frozen=True)
class EncoderFile:
    """An encoder that can be built repeatedly from its file.

    Attributes:
        size: window size in pixels.
        stride: pixels per side of a position of the feature map.
        dilate: dilation of a ResNet.
        sha256: hash of the weights.
        num_layers: number of layers whose maps heads can get.
    """

    path: str
    description: EncoderDescription
    size: int
    stride: int
    dilate: tuple[bool, ...]
    sensor: Sensor
    sha256: str
    is_transformer: bool
    by_wavelength: bool
    num_layers: int = 1
    is_trainable: ClassVar[bool] = True
    """Whether it can be initialized, trained and saved."""

    def build(self, bn_group: int | None = None) -> Encoder:
        """Build the pretrained encoder, on the CPU."""
        size = self.size if self.is_transformer else None
        return load_encoder(self.path, bn_group, image_size=size, dilate=self.dilate)[0]

    def gflops(self, bands: int) -> float | None:
        """Return the 10^9 operations of a forward on one window of that many bands; None for the code of others."""
        return sum(self.build().flops(bands, self.size).values()) / 1e9 if self.is_trainable else None

    def describe(self, name: str, sha256: str) -> dict[str, Any]:
        """Return the results' record of the encoder, its random-init baseline or spectra, with their hash."""
        known = self.description
        if name == "raw":
            return {"name": "raw spectra", "sha256": sha256, "architecture": RAW}
        if name == SPECTRA:
            return {"name": "spectra", "sha256": sha256, "architecture": SPECTRA}
        if name == "random":
            record = {"name": f"{known.architecture}, random init", "architecture": known.architecture}
            return record | {"sha256": sha256, "untrained": True}
        return {
            "name": _short_name(self.path),
            "sha256": sha256,
            "architecture": known.architecture,
            "objective": known.objective,
            "samples_seen": known.samples_seen,
            "dataset": known.dataset,
            "pretrained_on": known.pretrained_on,
        }

    def describe_input(self, data: LabeledDataConfig, train: LabeledSplit) -> InputDescription:
        """Describe how tiles are converted to the encoder's input.

        Raises:
            ConfigError: bands, statistics and weights do not match.
        """
        known, sensor = self.description, self.sensor
        response, num_bands = None, sensor.num_bands
        if data.bands == "same":
            check_same_bands(known, sensor)
        elif data.bands == "native":
            if not known.takes_any_bands and known.bands != sensor.num_bands:
                raise ConfigError(
                    f"key 'data.bands': native, but {known.architecture} takes {known.bands} bands only: use resample"
                )
            fewest = outline_encoder(known.architecture, **known.options).min_bands
            if sensor.num_bands < fewest:
                raise ConfigError(
                    f"key 'data.bands': native, but {known.architecture} needs at least {fewest} bands, and "
                    f"{sensor.name} has {sensor.num_bands}: use resample"
                )
        else:
            matrix = response_matrix(known.wavelength_nm, known.fwhm_nm, sensor.wavelength_nm, sensor.fwhm_nm)
            if not matrix.any():
                raise ConfigError(
                    f"key 'data.bands': resample, but no band of {sensor.name} overlaps those of {known.sensor}, which "
                    "the encoder takes: use native, or another encoder"
                )
            response, num_bands = matrix.tolist(), known.bands
        mu, sigma = self._statistics(data, train, num_bands)
        bands = list(sensor.wavelength_nm), list(sensor.fwhm_nm)
        return InputDescription(sensor.name, *bands, mu, sigma, known.clip, response)

    def describe_band_set(self, bands: BandSet, inputs: InputDescription, name: str) -> InputDescription:
        """Describe how tiles that are seen through a band set are converted to the encoder's input.

        An encoder by wavelength takes them as they are, normalized by statistics that are interpolated along the
        wavelength. For others, and raw spectra, they are resampled back to the bands that the encoder takes.

        Args:
            inputs: conversion of the tiles' own bands.
            name: ``pretrained``, ``random`` or ``raw``.
        """
        known = self.sensor if inputs.response is None else self.description
        if self.by_wavelength and name != "raw":
            centers, widths = bands.wavelength_nm.tolist(), bands.fwhm_nm.tolist()
            mu, sigma = (interpolate(centers, known.wavelength_nm, values) for values in (inputs.mu, inputs.sigma))
            made = {"response": bands.response.tolist(), "made_bands": (centers, widths)}
            return replace(inputs, mu=mu, sigma=sigma, **made)
        return replace(inputs, response=bands.resampled_to(known.wavelength_nm, known.fwhm_nm).tolist())

    def _statistics(self, data: LabeledDataConfig, train: LabeledSplit, bands: int) -> tuple[list[float], list[float]]:
        if data.statistics is not None:
            folder = Path(data.statistics)
            try:
                mu, sigma = (read_npy((folder / f"{name}.npy").read_bytes()).astype(float) for name in ("mu", "sigma"))
            except (OSError, ValueError) as error:
                raise ConfigError(f"key 'data.statistics': {folder}: needs mu.npy and sigma.npy ({error})") from None
            if mu.shape != (bands,) or sigma.shape != (bands,) or not (sigma > 0).all():
                raise ConfigError(
                    f"key 'data.statistics': {folder}: statistics of {mu.size} bands for input of {bands} bands"
                )
            return mu.tolist(), sigma.tolist()
        if data.bands == "native":
            return band_statistics(train)
        if not self.description.mu:
            raise ConfigError(
                f"key 'checkpoint': {self.path} doesn't say how its images were normalized: set data.statistics to a "
                "folder with mu.npy and sigma.npy"
            )
        return self.description.mu, self.description.sigma


def _short_name(location: str) -> str:
    """Return the last parts of a path or URL, enough to tell encoders apart."""
    path = Path(location.split("?")[0])
    return f"{path.parent.name}/{path.name}" if path.suffix or "://" in location else path.name


def fit_encoder(
    encoder: Encoder, description: EncoderDescription, config: FinetuneConfig, task: Task, items: Split
) -> EncoderFile:
    """Fit the checkpoint of a config to these tiles.

    Raises:
        ConfigError: the encoder does not accept such tiles.
    """
    published = config.recipe == "published" and kind_of(task).is_dense
    dilate = encoder.dense_dilation if published and encoder.dense_dilation else (False,) * 4
    size = _window_size(task, items, description, encoder.size_multiple if encoder.is_transformer else encoder.stride)
    sensor = tile_sensor(config.data, task)
    if encoder.is_transformer:  # position embeddings are interpolated to the window size
        description = replace(description, image_size=size)
    kind = encoder.is_transformer, encoder.by_wavelength, len(encoder.layer_shapes())
    sha256, stride = encoder_hash(encoder), encoder.stride
    return EncoderFile(config.checkpoint, description, size, stride, dilate, sensor, sha256, *kind)


def tile_sensor(data: LabeledDataConfig, task: Task) -> Sensor:
    """Return the sensor whose bands the tiles have: the shards' sensor, else the task's."""
    if data.shards is None:
        return get_sensor(task.sensor)
    return sensor_of(open_dataset(data.shards).manifest)


def _window_size(task: Task, items: Split, description: EncoderDescription, multiple: int) -> int:
    """Return the encoder's image size, reduced for smaller tiles; the size of the tile if a tile has one label."""
    first = items["train"][0].image()
    side = max(first.shape[1:])
    if kind_of(task).is_dense:
        return min(description.image_size, -(-side // multiple) * multiple)
    if first.dtype == np.float32:  # resized
        return description.image_size
    if first.shape[1] != first.shape[2] or side % multiple:
        raise ConfigError(
            f"{items['train'][0].name}: {first.shape[1]} x {first.shape[2]} px, but {description.architecture} takes "
            f"squares whose side is a multiple of {multiple} px"
        )
    return side


def initialize_as_pretraining(encoder: Encoder, description: EncoderDescription, seed: int) -> None:
    """Initialize an encoder as pretraining does."""
    initialize(encoder, "pretrain.encoder", seed)
    if description.objective == "mae":
        encoder.use_sincos_positions()
    for norm in grouped_batch_norms(encoder):
        norm.reset()


def band_statistics(train: LabeledSplit) -> tuple[list[float], list[float]]:
    """Return the mean and standard deviation of each band over the training tiles, ignoring missing values."""
    count, total, squares = 0.0, np.zeros(1), np.zeros(1)
    for item in train.items:
        values = item.image().astype(np.float64)
        measured = (values != NODATA).all(0)
        values = values[:, measured]
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + (values**2).sum(1)
    if not count:
        raise ConfigError("the training tiles have no pixels with data")
    mu = total / count
    sigma = np.sqrt(np.maximum(squares / count - mu**2, 1e-6))
    return mu.tolist(), sigma.tolist()
