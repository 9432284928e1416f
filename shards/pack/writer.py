"""Writer of a shard: a plain WebDataset tar and its index, both atomic and reproducible."""

import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import xxhash
from numcodecs.abc import Codec

from shards.errors import ShardError
from shards.files.atomic import atomic_open, write_atomic
from shards.format.error_bounds import error_bounds, is_lossless, violation
from shards.format.manifest import FORMAT, Rejected, ShardIndex, Sums, TileColumns, read_json, to_json
from shards.format.statistics import BandSums
from shards.format.table import QUALITY
from shards.sensors.sensor import NODATA, Sensor
from shards.sources.geotiff import Tile
from shards.sources.labels import as_stored
from shards.sources.tile_names import SourceTile


def index_path(tar: Path) -> Path:
    """Return the path of a shard's index, beside its tar."""
    return tar.with_suffix(".index.json")


def is_complete(tar: Path) -> bool:
    """Return whether a shard is complete: it has an index, and the tar has the size in the index."""
    try:
        return read_json(index_path(tar), ShardIndex).size == tar.stat().st_size
    except (ShardError, OSError):
        return False


def checksum(data: Any) -> int:
    """Return the XXH3-64 of a bytes-like object; it takes a third of the time of CRC-32C and releases the GIL."""
    return xxhash.xxh3_64_intdigest(data)


@dataclass(frozen=True)
class Sample:
    """The data that a shard stores for one tile.

    Attributes:
        key: key of the WebDataset sample.
        tile: encoded bytes.
        description: JSON bytes for readers without an index.
        mask: ``.npy`` bytes of the label tile, or empty.
        sums: sums over the tile's pixels.
        row: columns of the tile table, except offsets, lengths and checksums.
    """

    key: str
    tile: bytes
    description: bytes
    mask: bytes
    sums: BandSums
    row: dict[str, Any]


def encode_sample(source: SourceTile, tile: Tile, mask: np.ndarray | None, sensor: Sensor, codec: Codec) -> Sample:
    """Encode a tile with its label tile and metadata.

    Args:
        mask: integer label codes (height, width), or None.

    Raises:
        TileError: if label codes do not fit in int16.
        ShardError: if the codec breaks its bound on errors.
    """
    encoded = bytes(codec.encode(tile.values))
    quality: dict[str, float | None] = {name: tile.quality.get(name) for name in QUALITY}
    quality["nodata"] = float(np.mean((tile.values == NODATA).any(0)))
    lon, lat = (None if math.isnan(degrees) else round(degrees, 6) for degrees in tile.center_lonlat())
    row = {
        "key": source.key,
        "location": source.location,
        "timestamp": source.timestamp,
        "scene": source.scene,
        "split": source.split,
        "date": source.date or tile.date or None,  # a TIFF's own date is often the day of processing
        "lon": lon,
        "lat": lat,
        **quality,
    }
    description = {
        **row,
        "shape": list(tile.values.shape),
        "dtype": "int16",
        "sensor": sensor.name,
        "crs": tile.crs,
        "transform": list(tile.transform),
        "source": source.path,
    }
    return Sample(
        key=source.key,
        tile=encoded,
        description=json.dumps(description, sort_keys=True).encode(),
        mask=b"" if mask is None else _npy(as_stored(mask, source.mask)),
        sums=BandSums.of(stored_values(tile.values, encoded, codec, source.path)),
        row=row,
    )


def stored_values(tile: np.ndarray, encoded: bytes, codec: Codec, name: str) -> np.ndarray:
    """Return what a reader of the encoded tile gets; checks every pixel if the codec changes values.

    Args:
        name: of the tile, for messages.

    Raises:
        ShardError: if the codec breaks its bound on errors.
    """
    if is_lossless(codec):
        return tile
    stored = codec.decode(encoded, np.empty_like(tile, order="C"))
    if broken := violation(tile, stored, error_bounds(codec, encoded)):
        raise ShardError(f"{name}: codec {codec.get_config()} breaks its bound: {broken}; choose another codec")
    return stored


def write_shard(tar: Path, samples: Iterable[Sample | Rejected], bands: int) -> ShardIndex:
    """Write samples in the given order; rejected ones are listed in the index.

    Args:
        tar: path of the shard; its index is written beside it.
        bands: number of bands of every tile.
    """
    columns: dict[str, list] = {name: [] for name in TileColumns.model_fields}
    sums = BandSums.empty(bands)
    rejected: list[Rejected] = []
    with atomic_open(tar) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for sample in samples:
                if isinstance(sample, Rejected):
                    rejected.append(sample)
                    continue
                for name, value in (sample.row | _add_sample(archive, sample)).items():
                    columns[name].append(value)
                sums.add(sample.sums)
        length, digest = _measure(file)
    index = ShardIndex(
        format=FORMAT,
        shard=tar.name,
        size=length,
        sha256=digest,
        tiles=TileColumns(**columns),
        sums=Sums(**vars(sums)),
        rejected=rejected,
    ).sealed()
    write_atomic(index_path(tar), to_json(index))  # written after the tar: an index marks a complete shard
    return index


def _add_sample(archive: tarfile.TarFile, sample: Sample) -> dict[str, int]:
    """Append the members of a sample and return their offsets, lengths and checksums."""
    span = {
        "offset": _add_member(archive, f"{sample.key}.tile", sample.tile),
        "length": len(sample.tile),
        "checksum": checksum(sample.tile),
        "mask_offset": 0,
        "mask_length": len(sample.mask),
        "mask_checksum": checksum(sample.mask) if sample.mask else 0,
    }
    _add_member(archive, f"{sample.key}.json", sample.description)
    if sample.mask:
        span["mask_offset"] = _add_member(archive, f"{sample.key}.mask.npy", sample.mask)
    return span


def _add_member(archive: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member, with fixed owner and time for reproducible bytes, and return the offset of its data in bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    archive.addfile(info, io.BytesIO(data))
    return archive.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _measure(file: IO[bytes]) -> tuple[int, str]:
    """Return the length in bytes and the SHA-256 of a written file."""
    file.flush()
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    return length, hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
