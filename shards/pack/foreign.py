"""Codecs for the tiles of foreign WebDataset tars: .npy arrays and complete GeoTIFF files."""

import io
from typing import Any

import numpy as np
from numcodecs import register_codec
from numcodecs.abc import Codec

from shards.errors import ShardError, TileError
from shards.format.manifest import MOST_TILE_BYTES
from shards.sensors.sensor import Sensor, get_sensor


class NpyTile(Codec):
    """A codec of tiles stored as ``.npy`` bytes, int16 (bands, height, width) or (height, width, bands).

    Args:
        bands_last: whether the bands are the last axis.
    """

    codec_id, most = "npy_tile", 1

    def __init__(self, bands_last: bool = False) -> None:
        self.bands_last = bool(bands_last)

    def encode(self, tile: np.ndarray) -> bytes:
        """Return the ``.npy`` bytes of an int16 tile (bands, height, width)."""
        buffer = io.BytesIO()
        stored = np.ascontiguousarray(tile.transpose(1, 2, 0)) if self.bands_last else tile
        np.lib.format.write_array(buffer, stored, allow_pickle=False)
        return buffer.getvalue()

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Return the tile, in ``out`` if given, int16 (bands, height, width); raises ShardError for damaged bytes."""
        from shards.files.untrusted import read_npy

        try:
            tile = read_npy(bytes(data))
        except ValueError as error:
            raise ShardError(f"does not decode: {error}") from None
        if tile.ndim != 3 or tile.dtype != np.int16:
            raise ShardError(f"does not decode: an array {tile.dtype} {tile.shape}, expected an int16 tile")
        return _fill(tile.transpose(2, 0, 1) if self.bands_last else tile, out)

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "bands_last": self.bands_last}


class GeoTiffTile(Codec):
    """A codec of tiles stored as complete GeoTIFF files, with the bands of a sensor.

    Args:
        sensor: name of the sensor.
        bands: ``Sensor.to_dict`` of an unregistered sensor, whose band table may no longer exist.
    """

    codec_id = "geotiff_tile"

    def __init__(self, sensor: str, bands: dict[str, Any] | None = None) -> None:
        self.sensor, self.bands = sensor, bands
        self._sensor = get_sensor(sensor) if bands is None else Sensor.from_dict(bands)

    @classmethod
    def of(cls, sensor: Sensor) -> "GeoTiffTile":
        """Return the codec for tiles of a sensor."""
        return cls(sensor.name, None if sensor.is_registered else sensor.to_dict())

    def get_config(self) -> dict[str, Any]:
        return {"id": self.codec_id, "sensor": self.sensor} | ({"bands": self.bands} if self.bands else {})

    def encode(self, tile: np.ndarray) -> bytes:
        raise ValueError("GeoTIFF members are read-only; pack tiles with one of our codecs")

    def decode(self, data: Any, out: np.ndarray | None = None) -> np.ndarray:
        """Return the tile, in ``out`` if given, int16 (bands, height, width); raises ShardError for damaged bytes."""
        from shards.sources.geotiff import read_tile_bytes

        content = bytes(data)
        _check_size(content, None if out is None else out.shape[1:])
        try:
            tile = read_tile_bytes(content, "member", self._sensor).values
        except TileError as error:
            raise ShardError(f"does not decode: {error}") from None
        return _fill(tile, out)


def _check_size(data: bytes, expected: tuple[int, ...] | None) -> None:
    """Raise ShardError if a GeoTIFF's header has an unexpected shape, or more bytes than any tile."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with rasterio.MemoryFile(data) as file, file.open() as image:
            size = image.width * image.height * image.count * 2
            shape = (image.height, image.width)
    except RasterioError as error:
        raise ShardError(f"does not decode: not a readable image ({' '.join(str(error).split())})") from None
    if (expected is not None and shape != expected) or size > MOST_TILE_BYTES:
        raise ShardError(f"does not decode: an image of {shape[0]} x {shape[1]} pixels and {size >> 20} MiB")


def _fill(tile: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    if out is None:
        return np.ascontiguousarray(tile)
    if out.shape != tile.shape:
        raise ShardError(f"holds a tile of {tile.shape}, expected {out.shape}")
    out[:] = tile
    return out


register_codec(NpyTile)
register_codec(GeoTiffTile)
