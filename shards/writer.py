"""One shard: a plain WebDataset tar and its index. Both appear by rename only; bytes depend on the tiles alone."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import IO

import google_crc32c
import numpy as np

from shards.atomic import atomic_open, write_atomic
from shards.codec import SpectralDelta
from shards.errors import TileError
from shards.geotiff import Tile, read_tile
from shards.manifest import FORMAT, Rejected, ShardIndex, Sums, to_json
from shards.sensors import NODATA, Sensor
from shards.sources import TileSource
from shards.statistics import BandSums


def index_path(tar: Path) -> Path:
    """Where the index of a shard lies: beside its tar."""
    return tar.with_suffix(".index.json")


def write_shard(
    tar: Path, source: Path, tiles: list[TileSource], sensor: Sensor, size: int, codec: SpectralDelta
) -> ShardIndex:
    """Read, encode and write the tiles of one shard; unusable ones are listed in its index.

    Args:
        tar: where the shard goes; its index goes beside it.
        source: the directory that the paths in ``tiles`` are relative to.
        tiles: in the order in which they are stored.
        size: height and width of a tile in pixels.
    """
    columns: dict[str, list] = {name: [] for name in _COLUMNS}
    sums = BandSums.empty(sensor.num_bands)
    rejected: list[Rejected] = []
    with atomic_open(tar) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for tile_source in tiles:
                try:
                    tile = read_tile(source / tile_source.path, sensor, size)
                except TileError as error:
                    reason = str(error).removeprefix(f"{source / tile_source.path}: ")
                    rejected.append(Rejected(path=tile_source.path, reason=reason))
                    continue
                _add_sample(archive, file, tile_source, tile, sensor, codec, columns)
                sums.add(BandSums.of(tile.values))
        length, digest = _measure(file)
    index = ShardIndex(
        format=FORMAT,
        shard=tar.name,
        size=length,
        sha256=digest,
        sums=Sums(**vars(sums)),
        rejected=rejected,
        **columns,
    )
    write_atomic(index_path(tar), to_json(index))  # written after the tar: an index means a whole shard
    return index


_COLUMNS = ("key", "location", "timestamp", "offset", "length", "crc32c", "nodata_share")


def _add_sample(
    archive: tarfile.TarFile,
    file: IO[bytes],
    source: TileSource,
    tile: Tile,
    sensor: Sensor,
    codec: SpectralDelta,
    columns: dict[str, list],
) -> None:
    encoded = codec.encode(tile.values)
    nodata_share = float(np.mean((tile.values == NODATA).any(0)))
    description = {
        "shape": list(tile.values.shape),
        "dtype": "int16",
        "sensor": sensor.name,
        "location": source.location,
        "timestamp": source.timestamp,
        "crs": tile.crs,
        "transform": list(tile.transform),
        "source": source.path,
        "nodata_share": nodata_share,
    }
    offset = _add_member(archive, file, f"{source.key}.tile", encoded)
    _add_member(archive, file, f"{source.key}.json", json.dumps(description, sort_keys=True).encode())
    row = (
        source.key,
        source.location,
        source.timestamp,
        offset,
        len(encoded),
        google_crc32c.value(encoded),
        nodata_share,
    )
    for name, value in zip(_COLUMNS, row, strict=True):
        columns[name].append(value)


def _add_member(archive: tarfile.TarFile, file: IO[bytes], name: str, data: bytes) -> int:
    """Append a member and return where its data begins, in bytes. Owner and time are fixed: same tiles, same bytes."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    archive.addfile(info, io.BytesIO(data))
    return archive.offset - -(-len(data) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _measure(file: IO[bytes]) -> tuple[int, str]:
    """Length in bytes and SHA-256 of what was written."""
    file.flush()
    length = file.seek(0, io.SEEK_END)
    file.seek(0)
    return length, hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
