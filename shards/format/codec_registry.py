"""Tile codecs by name: the project's own, those of plugins, and the compressors of numcodecs.

A manifest contains the config of its codec, ``{"id": "spectral_predictor", "pack_low": true}``. `pack --codec` accepts
the name of a preset, the id of a codec, or such a config as JSON.
"""

from collections.abc import Callable
from typing import Any

import numcodecs
import numpy as np
from numcodecs import registry
from numcodecs.abc import Codec
from pydantic import ValidationError

from shards.config import NamedConfig
from shards.errors import ConfigError, ShardError
from shards.files.untrusted import read_json_value
from shards.format.bounded import BoundedPredictor
from shards.format.codec import RawTile, SpectralPredictor
from shards.format.row_predictor import RowPredictor
from shards.registry import Registry


class PredictorConfig(NamedConfig):
    """Options of `SpectralPredictor` and `RowPredictor`."""

    pack_low: bool = False
    blocks: bool = False


class BoundedPredictorConfig(NamedConfig):
    """Options of `BoundedPredictor`."""

    max_error: str
    blocks: bool = False


class NpyTileConfig(NamedConfig):
    """Options of `shards.pack.foreign.NpyTile`."""

    bands_last: bool = False


class GeoTiffTileConfig(NamedConfig):
    """Options of `shards.pack.foreign.GeoTiffTile`."""

    sensor: str
    bands: dict[str, Any] | None = None


CODECS: Registry[Callable[..., Codec]] = Registry("codec")
"""Tile codecs by id: classes with numcodecs' interface, constructed with the options of their config.

``encode(tile)`` takes int16 (bands, height, width) and returns bytes; ``decode(data)`` returns the same values, as an
int16 array or as its little-endian bytes; ``get_config()`` returns the id and the options. A codec that changes values
has a method ``bounds(data)``, the largest error of each band (shards/format/error_bounds.py).
"""
CODECS.add(SpectralPredictor.codec_id, SpectralPredictor, PredictorConfig)
CODECS.add(RowPredictor.codec_id, RowPredictor, PredictorConfig)
CODECS.add(BoundedPredictor.codec_id, BoundedPredictor, BoundedPredictorConfig)
CODECS.add(RawTile.codec_id, RawTile)
CODECS.add("npy_tile", "shards.pack.foreign:NpyTile", NpyTileConfig)
CODECS.add("geotiff_tile", "shards.pack.foreign:GeoTiffTile", GeoTiffTileConfig)

COMPRESSORS = ("blosc", "gzip", "lz4", "zlib", "zstd")
"""numcodecs codecs that pack a tile's bytes. The others change values or, like ``pickle``, execute what they read."""

PRESETS: dict[str, Codec] = {
    "raw": RawTile(),
    "fast": SpectralPredictor(pack_low=False),
    "compact": SpectralPredictor(pack_low=True),
    "smallest": RowPredictor(pack_low=True, blocks=True),
}
"""Presets, chosen by measurement (`tools/bench_codec.py`); they compress int16 by 1x, 2.0x, 2.6x and 2.8x."""

_OWN = (SpectralPredictor.codec_id, RowPredictor.codec_id, BoundedPredictor.codec_id, RawTile.codec_id)
_FOREIGN = ("npy_tile", "geotiff_tile")


class CheckedCodec(Codec):
    """A wrapper for third-party codecs that converts their errors to `ShardError` and validates decoded values.

    Args:
        codec: codec that packs the bytes of a tile.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec, self.codec_id = codec, codec.codec_id

    def encode(self, tile: np.ndarray) -> bytes:
        """Return the packed bytes of an int16 tile (bands, height, width)."""
        return bytes(self.codec.encode(np.ascontiguousarray(tile, dtype="<i2")))

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Unpack into ``out``, int16 (bands, height, width), or return an array of the codec's own shape.

        Raises:
            ShardError: if the codec fails, or its result has the wrong type or size.
        """
        try:
            unpacked = self.codec.decode(bytes(data))
            is_tile = isinstance(unpacked, np.ndarray) and unpacked.dtype == np.int16
            values = unpacked if is_tile else np.frombuffer(unpacked, dtype="<i2")
        except Exception as error:  # codecs can raise any error
            raise ShardError(f"does not decode: {self.codec_id}: {' '.join(str(error).split())}") from None
        if out is None:
            return values
        if values.size != out.size:
            raise ShardError(f"holds {values.size} values, expected a tile of {out.shape}")
        out.reshape(-1)[:] = values.reshape(-1)
        return out

    def get_config(self) -> dict[str, Any]:
        return self.codec.get_config()


def is_foreign(config: dict[str, Any]) -> bool:
    """Return whether a manifest's codec describes foreign tars, whose members have other names and another order."""
    return config.get("id") in _FOREIGN


def build_codec(config: dict[str, Any]) -> Codec:
    """Return the codec that a manifest describes.

    Raises:
        ShardError: if the codec is unknown or does not accept these options.
    """
    name, options = config.get("id"), {key: value for key, value in config.items() if key != "id"}
    if not isinstance(name, str):
        raise ShardError(f"tile codec {config}: 'id' is missing")
    try:
        if name in CODECS:
            typed = CODECS.config(name).model_validate({"name": name, **options})
            codec = CODECS[name](**typed.model_dump(exclude={"name"}))
            return codec if name in (*_OWN, *_FOREIGN) else CheckedCodec(codec)
        if name in COMPRESSORS or name in registry.entries:
            return CheckedCodec(numcodecs.get_codec(dict(config)))
    except (ValidationError, TypeError, ValueError) as error:
        what = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ShardError(f"tile codec {config}: this version can't build it: {what}") from None
    raise ShardError(f"{CODECS.unknown(name)}; of numcodecs {', '.join(COMPRESSORS)}")


def codec_of(option: str) -> Codec:
    """Return the codec of `pack --codec`: a preset, an id, or a config as JSON.

    Raises:
        ConfigError: if it is none of them.
    """
    if option in PRESETS:
        return PRESETS[option]
    try:
        config = read_json_value(option) if option.lstrip().startswith("{") else {"id": option}
        return build_codec(config)
    except (ValueError, ShardError) as error:
        raise ConfigError(f"--codec {option}: {error}; presets are {', '.join(PRESETS)}") from None
