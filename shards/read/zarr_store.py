"""The shards as one Zarr v3 array without a copy: chunk i is encoded tile i in its tar.

``open_zarr(folder)[i]`` uses zarr's own API: a read-only store maps zarr's keys to byte ranges of the tars, and the
tile codec is registered as a Zarr codec (entry point ``zarr.codecs``), which can also be used to write arrays.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import zarr
from zarr.abc.codec import ArrayBytesCodec
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype, NDBuffer
from zarr.registry import register_codec

from shards.errors import ShardError
from shards.format.codec import RawTile, SpectralPredictor
from shards.format.codec_registry import build_codec
from shards.format.planes import PlaneCodec
from shards.format.row_predictor import RowPredictor
from shards.read.reader import ShardReader


@dataclass(frozen=True)
class PredictorCodec(ArrayBytesCodec):
    """Base of the lossless predicting codecs as Zarr v3 codecs, for int16 chunks whose last axes are (bands, y, x).

    Args:
        pack_low, blocks: as in `PlaneCodec`.
    """

    pack_low: bool = True
    blocks: bool = False
    is_fixed_size = False
    tile_codec: ClassVar[type[PlaneCodec]]

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        config = self._codec().get_config()
        return {"name": config.pop("id"), "configuration": config}

    def validate(self, *, shape: tuple[int, ...], dtype: Any, chunk_grid: Any) -> None:
        chunk, name = getattr(chunk_grid, "chunk_shape", shape), self.tile_codec.codec_id
        if dtype.to_native_dtype() != np.int16 or len(chunk) < 3 or any(length != 1 for length in chunk[:-3]):
            raise ValueError(f"{name} packs int16 chunks (1, bands, height, width), not {chunk} {dtype}")

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        tile = np.empty(chunk_spec.shape, dtype=np.int16)
        target = tile.reshape(chunk_spec.shape[-3:])
        await asyncio.to_thread(self._codec().decode, chunk_bytes.as_numpy_array(), target)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(tile)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        tile = chunk_array.as_numpy_array().reshape(chunk_spec.shape[-3:])
        encoded = await asyncio.to_thread(self._codec().encode, np.ascontiguousarray(tile))
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return input_byte_length  # Zarr asks only codecs of fixed size

    def _codec(self) -> PlaneCodec:
        return self.tile_codec(self.pack_low, self.blocks)


class SpectralPredictorCodec(PredictorCodec):
    """`SpectralPredictor` as a Zarr v3 codec."""

    tile_codec = SpectralPredictor


class RowPredictorCodec(PredictorCodec):
    """`RowPredictor` as a Zarr v3 codec."""

    tile_codec = RowPredictor


@dataclass(frozen=True)
class TileCodec(ArrayBytesCodec):
    """Codecs of foreign tars (shards/pack/foreign.py) as a Zarr v3 codec for int16 chunks (1, bands, height, width).

    Args:
        codec: numcodecs config of the tile codec.
    """

    codec: dict[str, Any]
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        return cls(**data.get("configuration", {}))

    def to_dict(self) -> dict[str, Any]:
        return {"name": TILE_CODEC, "configuration": {"codec": self.codec}}

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        tile = np.empty(chunk_spec.shape, dtype=np.int16)
        codec = build_codec(self.codec)
        await asyncio.to_thread(codec.decode, chunk_bytes.to_bytes(), tile.reshape(chunk_spec.shape[-3:]))
        return chunk_spec.prototype.nd_buffer.from_numpy_array(tile)

    async def _encode_single(self, chunk_array: NDBuffer, chunk_spec: ArraySpec) -> Buffer:
        raise ShardError("tiles of foreign tars are read-only; pack them to write arrays")

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return input_byte_length  # Zarr asks only codecs of fixed size


TILE_CODEC = "spectralforge_tile"
PREDICTORS: dict[str, type[PredictorCodec]] = {
    kind.tile_codec.codec_id: kind for kind in (SpectralPredictorCodec, RowPredictorCodec)
}
for codec_id, kind in PREDICTORS.items():
    register_codec(codec_id, kind)
register_codec(TILE_CODEC, TileCodec)


class ShardStore(Store):
    """A read-only Zarr store: ``zarr.json`` comes from the manifest, ``c/<tile>/0/0/0`` from the tars.

    Args:
        reader: reader of the shards; the checksum of every chunk is verified.
    """

    supports_writes = supports_deletes = supports_partial_writes = False
    supports_listing = True

    def __init__(self, reader: ShardReader) -> None:
        super().__init__(read_only=True)
        self._is_open = True
        self.reader = reader
        self._metadata = json.dumps(array_metadata(reader)).encode()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardStore) and self._metadata == other._metadata

    def __str__(self) -> str:
        return f"shards:{self.reader.location}"

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        row = self._row(key)
        if key == "zarr.json":
            data: Any = self._metadata
        elif row is not None:
            data = (await asyncio.to_thread(self.reader.read_encoded, row)).tobytes()
        else:
            return None
        return prototype.buffer.from_bytes(_cut(data, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        return key == "zarr.json" or self._row(key) is not None

    async def set(self, key: str, value: Buffer) -> None:
        raise ShardError(f"{self}: shards are read-only as a Zarr array; change them with `python -m shards pack`")

    async def delete(self, key: str) -> None:
        raise ShardError(f"{self}: shards are read-only as a Zarr array")

    async def list(self) -> AsyncIterator[str]:
        yield "zarr.json"
        for row in range(len(self.reader)):
            yield f"c/{row}/0/0/0"

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        seen = set()
        async for key in self.list_prefix(start):
            name = key[len(start) :].split("/", 1)[0]
            if name not in seen:
                seen.add(name)
                yield name

    def _row(self, key: str) -> int | None:
        """Return the tile row of a chunk key, None for other keys."""
        parts = key.split("/")
        if len(parts) == 5 and parts[0] == "c" and parts[2:] == ["0", "0", "0"] and parts[1].isdigit():
            row = int(parts[1])
            return row if row < len(self.reader) else None
        return None


def array_metadata(reader: ShardReader) -> dict[str, Any]:
    """Return the ``zarr.json`` of the shards as an array (tiles, bands, height, width)."""
    manifest = reader.manifest
    codec: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    if manifest.codec["id"] in PREDICTORS:
        kind = PREDICTORS[manifest.codec["id"]]
        codec = kind(manifest.codec["pack_low"], manifest.codec.get("blocks", False)).to_dict()
    elif manifest.codec["id"] != RawTile.codec_id:
        codec = TileCodec(manifest.codec).to_dict()
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [len(reader), *reader.tile_shape],
        "data_type": "int16",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *reader.tile_shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": manifest.nodata,
        "codecs": [codec],
        "dimension_names": ["tile", "band", "y", "x"],
        "attributes": {
            "sensor": manifest.sensor,
            "wavelength_nm": manifest.wavelength_nm,
            "fwhm_nm": manifest.fwhm_nm,
            "scale": manifest.scale,
            "mean": manifest.mean,
            "std": manifest.std,
            "content_hash": manifest.content_hash,
        },
    }


def open_zarr(location: str | Path) -> zarr.Array:
    """Open the shards at a folder or URL as a read-only int16 array (tiles, bands, height, width).

    Keys, locations and dates are in the tile table: ``shards.read.reader.open_dataset(location).table``.

    Raises:
        ShardError: if something is missing or damaged; also raised later, when a damaged tile is read.
    """
    return zarr.open_array(store=ShardStore(ShardReader(location)), mode="r")


def _cut(data: bytes, byte_range: ByteRequest | None) -> bytes:
    if isinstance(byte_range, RangeByteRequest):
        return data[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return data[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return data[max(0, len(data) - byte_range.suffix) :]
    return data
