"""Encoders of other projects: a Python file with a function ``encode`` in the place of a checkpoint.

::

    def encode(tiles, wavelengths):
        ...
        return features

``tiles`` are float32 (B, C, H, W): reflectance, missing values 0. ``wavelengths`` are the centers of the C bands in nm,
float32 (C,). ``features`` are (B, D, h, w), where H / h = W / w is an integer if every pixel has a label, or (B, D)
if a tile has one. Modules of torch that are
global variables of the file are put on the device; their weights and the text of the file identify the encoder. A
global ``size`` is the side in pixels of the windows that dense tiles are cut into, and that tiles of varying size are
resized to; without it, a window is a whole tile.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from finetune.config import FinetuneConfig, LabeledDataConfig
from finetune.data.datasets import LabeledSplit
from finetune.data.items import Split
from finetune.encoders.encoder import EncoderFile, tile_sensor
from finetune.encoders.features import encoder_hash
from finetune.encoders.model_file import InputDescription
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.encoder import Encoder
from pretrain.models.spectrum import TakesSpectrum, spectrum_of
from pretrain.weights.description import EncoderDescription
from shards.errors import ConfigError
from shards.plugins import load_file
from shards.sensors.sensor import Sensor

SCALE = 10_000.0
"""Digital numbers of reflectance 1."""


def is_function_file(checkpoint: str) -> bool:
    """Return whether a checkpoint is a Python file."""
    return checkpoint.endswith(".py")


class FunctionEncoder(TakesSpectrum, Encoder):
    """An encoder that calls the function of a file; instances share its modules.

    Args:
        path: the Python file.
        size: side of the images in pixels.

    Raises:
        ConfigError: the file can't be imported, or has no function ``encode``.
    """

    by_wavelength = True
    source: Tensor

    def __init__(self, path: str, size: int) -> None:
        super().__init__()
        file = load_file(path, "key 'checkpoint'")
        if not callable(getattr(file, "encode", None)):
            raise ConfigError(f"key 'checkpoint': {path}: define encode(tiles, wavelengths), which returns features")
        self._encode: Callable[[Tensor, Tensor], Tensor] = file.encode
        self._modules |= {name: value for name, value in vars(file).items() if isinstance(value, nn.Module)}
        text = hashlib.sha256(Path(path).read_bytes()).digest()
        self.register_buffer("source", torch.tensor(list(text), dtype=torch.uint8))  # a part of encoder_hash
        self.path, self.size_multiple = path, size

    def outline(self, sensor: Sensor, is_dense: bool) -> None:
        """Set ``feature_dim`` and ``stride`` from the features of an empty image.

        Args:
            is_dense: whether every pixel has a label.

        Raises:
            ConfigError: ``encode`` fails, or its features have another shape than the module's docstring says.
        """
        side = self.size_multiple
        self.default = spectrum_of(sensor.wavelength_nm, sensor.fwhm_nm)
        shape = (1, sensor.num_bands, side, side)
        try:
            features = self._features(torch.zeros(shape))
        except Exception as error:  # any code
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ConfigError(f"{self.path}: encode fails on tiles {shape}: {message}") from None
        found = tuple(features.shape) if isinstance(features, Tensor) else ()
        is_map = len(found) == 4 and found[2] == found[3] and side % found[2] == 0
        if found[:1] != (1,) or not (is_map if is_dense else len(found) in (2, 4)):
            expected = "(B, D, h, w) whose sides divide those of the tiles" if is_dense else "(B, D) or (B, D, h, w)"
            returned = found or type(features).__name__
            raise ConfigError(f"{self.path}: encode returned {returned} for tiles {shape}: return a tensor {expected}")
        self.feature_dim, self.stride = found[1], side // found[2] if is_map else side

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        assert self.default is not None
        return self._encode(images, self.default.center_nm[0].to(images.device))

    def _pooled(self, images: Tensor | Sequence[Tensor], *spectrum: Any) -> Tensor:
        assert isinstance(images, Tensor)
        features = self._features(images)
        return features.mean((2, 3)) if features.dim() == 4 else features

    def _map(self, images: Tensor, *spectrum: Any) -> Tensor:
        return self._features(images)


@dataclass(frozen=True)
class FunctionFile(EncoderFile):
    """An `EncoderFile` of a function."""

    is_trainable = False

    def build(self, bn_group: int | None = None) -> Encoder:
        encoder = FunctionEncoder(self.path, self.size)
        encoder.feature_dim, encoder.stride = self.description.options["feature_dim"], self.stride
        return encoder.eval()

    def describe_input(self, data: LabeledDataConfig, train: LabeledSplit) -> InputDescription:
        """Describe the conversion of tiles to reflectance, or to ``data.statistics`` of standard units; with
        ``data.bands: native``, to those of the training tiles.

        Raises:
            ConfigError: the bands are to be resampled, or the statistics do not match.
        """
        if data.bands == "resample":
            raise ConfigError(
                f"key 'data.bands': resample, but {self.path} gets the tiles' bands with their wavelengths: use same"
            )
        mu, sigma = self._statistics(data, train, self.sensor.num_bands)
        bands = list(self.sensor.wavelength_nm), list(self.sensor.fwhm_nm)
        return InputDescription(self.sensor.name, *bands, mu, sigma, None)


def fit_function(config: FinetuneConfig, task: Task, items: Split) -> FunctionFile:
    """Fit the function of a config to these tiles.

    Raises:
        ConfigError: the file, the function or its features are not as they should be, or the config trains an encoder.
    """
    sensor, path = tile_sensor(config.data, task), config.checkpoint
    size = _window_size(path, task, items)
    encoder = FunctionEncoder(path, size).eval()
    encoder.outline(sensor, kind_of(task).is_dense)
    bands = list(sensor.wavelength_nm), list(sensor.fwhm_nm)
    statistics = [0.0] * sensor.num_bands, [SCALE] * sensor.num_bands
    name, options = Path(path).name, {"model": {"feature_dim": encoder.feature_dim}}
    known = EncoderDescription(
        name, size, encoder.stride, sensor.name, *bands, *statistics, "", 0, "", "", config=options
    )
    undilated = (False,) * 4
    return FunctionFile(path, known, size, encoder.stride, undilated, sensor, encoder_hash(encoder), False, True)


def _window_size(path: str, task: Task, items: Split) -> int:
    """Return the file's ``size``, or the side of a tile."""
    first = items["train"][0].image()
    given = getattr(load_file(path, "key 'checkpoint'"), "size", None)
    if given is not None and not (isinstance(given, int) and given > 0):
        raise ConfigError(f"{path}: size = {given!r}: give a number of pixels")
    is_resized = first.dtype == np.float32
    if is_resized and given is None:
        raise ConfigError(f"{path}: tiles of task {task.name} vary in size: define size, to which they are resized")
    is_cut = kind_of(task).is_dense or is_resized
    return given if given is not None and is_cut else max(first.shape[1:])
