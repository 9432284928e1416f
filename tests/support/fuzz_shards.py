"""Fuzz targets: files of shard folders, tiles and tars."""

import hashlib
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from support.fuzz import Target, write_file
from support.mutations import Mutation, flip, flip_start, forge
from support.tiles import spectra, write_archive, write_tile

from shards.errors import ForgeError
from shards.files.untrusted import read_npy, read_npz
from shards.format.bounded import BoundedPredictor
from shards.format.codec import SpectralPredictor
from shards.format.manifest import Manifest, SealedModel, ShardIndex
from shards.format.planes import PixelwiseCodec, PlaneCodec
from shards.format.row_predictor import RowPredictor
from shards.pack.build import merge, pack
from shards.pack.foreign import GeoTiffTile, NpyTile
from shards.pack.index import index_tars
from shards.pack.listing import read_list
from shards.pack.record import PackRecord, read_record
from shards.pack.scan import Labels, PackConfig
from shards.read.quarantine import Quarantine
from shards.read.reader import ShardReader
from shards.sensors.sensor import get_sensor
from shards.sources.archive import Archive

ENMAP, SIZE = get_sensor("enmap"), 8
TILE = spectra(1, SIZE)


# ---- shards ----


def _pack(folder: Path) -> None:
    source = folder.parent / "packed"
    if not source.exists():
        values = write_archive(source / "tiles", SIZE)
        for key in values:
            location, timestamp = key.split("_")
            write_tile(source / "labels/enmap" / location / f"{timestamp}.tif", np.ones((SIZE, SIZE), np.uint8))
        config = PackConfig(size=SIZE, tiles_per_shard=4)
        pack(source / "tiles", source / "shards", config, labels=Labels(source / "labels"))
    shutil.copytree(source / "shards", folder)


def _read_shards(folder: Path, stage: bool = False) -> None:
    reader = ShardReader(folder, stage=folder / "stage" if stage else None)
    try:
        if stage:
            reader.prefetch(range(len(reader.manifest.shards)))
        out = np.empty((2, *reader.tile_shape), dtype=np.int16)
        for row in range(0, min(len(reader), 12) - 1, 2):
            reader.read([row, row + 1], out)
            reader.read_mask(row)
    finally:
        reader.close()


def _sealed(model: type[SealedModel]) -> Mutation:
    """Return a mutation that forges JSON and recomputes its checksum, as an attacker could."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        forged = forge({key: value for key, value in json.loads(data).items() if key != "checksum"}, rng)
        return _seal(forged)

    return mutate


def _seal(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, sort_keys=True)
    return json.dumps(content | {"checksum": hashlib.sha256(text.encode()).hexdigest()}).encode()


def _read_forged_table(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["checksum"]
    manifest["table_sha256"] = hashlib.sha256((folder / manifest["table"]).read_bytes()).hexdigest()
    (folder / "manifest.json").write_bytes(_seal(manifest))
    _read_shards(folder)


def _read_forged_list(folder: Path) -> None:
    record = json.loads((folder / "pack.json").read_bytes())
    del record["checksum"]
    listed = folder / record["generations"][0]["list_name"]
    record["generations"][0]["list_sha256"] = hashlib.sha256(listed.read_bytes()).hexdigest()
    (folder / "pack.json").write_bytes(_seal(record))
    _merge_again(folder)


def _merge_again(folder: Path) -> None:
    for generation in read_record(folder).generations:
        read_list(folder, generation)
    merge(folder)


# ---- tiles and tars ----


def _decode(codec: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        data = (folder / "tile").read_bytes()
        codec.decode(data)
        codec.decode(data, np.empty((ENMAP.num_bands, SIZE, SIZE), np.int16))
        if isinstance(codec, PixelwiseCodec):
            codec.unpack(data, np.empty((ENMAP.num_bands, SIZE, SIZE), np.int16))

    return read


def _tiff() -> bytes:
    path = Path(f"/tmp/fuzz-{os.getpid()}.tif")
    data = write_tile(path, spectra(1, SIZE)).read_bytes()
    path.unlink()
    return data


def _npy(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()


def _tar_bytes(mode: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for number in range(3):
            for name, data in (("tif", _tiff()), ("json", b'{"location": "a", "date": "2022-01-01", "lon": 1.5}')):
                member = tarfile.TarInfo(f"{'folder' * 20}/tile-{number}.{name}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _value_error(read: Callable[[bytes], object]) -> Callable[[Path], object]:
    """Wrap a reader whose callers convert ValueError to a one-line error."""

    def attempt(folder: Path) -> None:
        try:
            read((folder / "file").read_bytes())
        except ValueError as error:
            raise ForgeError(str(error)) from None

    return attempt


def _read_npz(folder: Path) -> None:
    try:
        read_npz(folder / "file")
    except ValueError as error:
        raise ForgeError(str(error)) from None


def _tile(codec: PlaneCodec) -> Target:
    return Target(write_file("tile", lambda: codec.encode(TILE)), "tile", _decode(codec), (flip, flip_start), 200)


def _tar(mode: str) -> Callable[[Path], None]:
    return write_file("a.tar", lambda: _tar_bytes(mode))


def _read_archive(folder: Path) -> None:
    for _ in Archive(folder / "a.tar", "a.tar", ENMAP, SIZE).tiles(()):
        pass


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, histogram=np.zeros((4, 65536), np.int64), content=np.array("a" * 64))
    return buffer.getvalue()


def _quarantine(folder: Path) -> None:
    folder.mkdir()
    lines = [{"dataset": "abc", "row": row, "key": "k", "reason": "r"} for row in range(4)]
    (folder / "quarantine-00000.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _read_quarantine(folder: Path) -> None:
    quarantine = Quarantine(np.arange(100), "abc", 50, folder, 0)
    quarantine.substitute(7, 1) if 7 in quarantine else None


TARGETS = {
    "manifest": Target(_pack, "manifest.json", lambda f: _read_shards(f, True), (_sealed(Manifest), flip), 300),
    "index": Target(_pack, "shard-000001.index.json", merge, (_sealed(ShardIndex), flip), 160),
    "table": Target(_pack, "tiles-000.npy", _read_forged_table, (flip, flip_start), 300),
    "record": Target(_pack, "pack.json", _merge_again, (_sealed(PackRecord), flip), 100),
    "list": Target(_pack, "sources-000.tsv", _read_forged_list, count=120),
    "shard": Target(_pack, "shard-000000.tar", _read_shards, count=60),
    "compact tile": _tile(SpectralPredictor(pack_low=True)),
    "fast tile": _tile(SpectralPredictor(pack_low=False)),
    "smallest tile": _tile(RowPredictor(pack_low=True, blocks=True)),
    "tile in blocks": _tile(BoundedPredictor(3, blocks=True)),
    "npy tile": Target(write_file("tile", lambda: _npy(TILE)), "tile", _decode(NpyTile()), (flip_start,), 200),
    "tiff tile": Target(write_file("tile", _tiff), "tile", _decode(GeoTiffTile("enmap")), (flip, flip_start), 120),
    "npy": Target(write_file("file", lambda: _npy(TILE[0])), "file", _value_error(read_npy), (flip, flip_start), 300),
    "npz": Target(write_file("file", _npz), "file", _read_npz, (flip, flip_start), 80),
    "foreign tar": Target(_tar("w:"), "a.tar", lambda f: index_tars(f, "enmap", 1), (flip, flip_start), 25),
    "archive": Target(_tar("w:"), "a.tar", _read_archive, (flip, flip_start), 60),
    "packed archive": Target(_tar("w:gz"), "a.tar", _read_archive, count=40),
    "quarantine": Target(_quarantine, "quarantine-00000.jsonl", _read_quarantine, count=200),
}
