"""`index`: make a readable dataset from foreign WebDataset tars, without changing them.

A sample is a tile member (``.tile``, ``.npy`` or ``.tif``) and optionally a ``.json`` with location and date. One pass
over each tar finds the members, decodes every tile for its statistics, and writes an index beside the tar; table and
manifest are then written as for packed shards.
"""

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shards.console import get_logger
from shards.errors import ShardError
from shards.files.atomic import write_atomic
from shards.format.codec_registry import PRESETS, build_codec
from shards.format.manifest import (
    FORMAT,
    MANIFEST,
    Rejected,
    ShardIndex,
    Sums,
    TileColumns,
    read_json,
    read_manifest,
    to_json,
)
from shards.format.statistics import BandSums
from shards.format.table import QUALITY
from shards.format.tar_members import Member as TarMember
from shards.format.tar_members import check_member
from shards.pack.foreign import GeoTiffTile, NpyTile
from shards.pack.merge import join_shards
from shards.pack.writer import checksum, index_path, is_complete
from shards.sensors.sensor import NODATA, Sensor, get_sensor
from shards.sources.descriptions import read_description
from shards.sources.members import Links, Member, link_target
from shards.sources.walk import is_data, member_name
from shards.workers import counters, run_jobs

logger = get_logger(__name__)

KINDS = {"tile": "tile", "npy": "npy", "tif": "tif", "tiff": "tif"}


def index_tars(folder: Path, sensor_name: str, workers: int) -> int:
    """Index all tars of a folder and join them into a dataset; prints a summary and returns 0.

    Raises:
        ShardError: if there are no tars, a tar is damaged, or tiles have different formats or shapes.
    """
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder of tars")
    packed = sorted(path for ending in ("*.tar.gz", "*.tgz") for path in folder.glob(ending) if is_data(path.name))
    if packed:
        raise ShardError(f"{packed[0]}: compressed tars can't be read by ranges; unpack it with gunzip, or use `pack`")
    tars = sorted(path for path in folder.glob("*.tar") if is_data(path.name))
    if not tars:
        raise ShardError(f"{folder}: no .tar files")
    sensor = get_sensor(sensor_name)
    config, shape = _first_tile(tars[0], sensor)
    reindex = _was_otherwise(folder, config, sensor)
    missing = [tar for tar in tars if reindex or not is_complete(tar)]
    doubts = Doubts()
    for tar_doubts in run_jobs(index_tar, [(tar, config, shape, sensor) for tar in missing], workers, None, 0, "index"):
        doubts.add(tar_doubts)
    for line in doubts.lines():
        logger.warning(line)
    rejected = [bad for tar in tars for bad in read_json(index_path(tar), ShardIndex).rejected]
    for bad in rejected:
        logger.warning(f"set aside: {bad.path}: {bad.reason}")
    manifest = join_shards(folder, [tar.name for tar in tars], config, shape, sensor, generations=1)
    print(
        f"indexed {manifest.tiles} tiles of {manifest.locations} locations in {len(tars)} tars "
        f"({len(missing)} read now, {manifest.rejected} tiles set aside): {folder}"
    )
    return 0


def _was_otherwise(folder: Path, config: dict[str, Any], sensor: Sensor) -> bool:
    """Return whether an earlier run indexed these tars with another codec or other bands."""
    if not (folder / MANIFEST).exists():
        return False
    try:
        before = read_manifest(folder)
    except ShardError:  # damaged: it is written again
        return False
    return (before.codec, tuple(before.wavelength_nm)) != (config, sensor.wavelength_nm)


def _first_tile(tar: Path, sensor: Sensor) -> tuple[dict[str, Any], list[int]]:
    """Return codec config and shape of the first tile, which all others must share."""
    for key, members, archive in samples(tar):
        kind = _kind(tar, key, members)
        data = _read(archive, members[kind][0])
        for codec in _candidates(kind, sensor):
            try:
                tile = codec.decode(data)
            except ShardError:
                continue
            if tile.ndim == 3 and len(tile) == sensor.num_bands:
                return codec.get_config(), list(tile.shape)
        raise ShardError(
            f"{tar}: sample '{key}': .{kind} is not an int16 tile with the {sensor.num_bands} {sensor.name} bands"
        )
    raise ShardError(f"{tar}: holds no samples")


def _candidates(kind: str, sensor: Sensor) -> list[Any]:
    if kind == "tile":
        return [PRESETS["compact"], PRESETS["fast"], PRESETS["smallest"]]
    return [NpyTile(), NpyTile(bands_last=True)] if kind == "npy" else [GeoTiffTile.of(sensor)]


Members = dict[str, tuple[tarfile.TarInfo, str]]


@dataclass
class Doubts:
    """Invalid fields of JSON members: the count and the first message of each field."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, line: str) -> None:
        self.counts[name] += 1
        self.first.setdefault(name, line)

    def add(self, other: "Doubts") -> None:
        self.counts += other.counts
        for name, line in other.first.items():
            self.first[name] = min(line, self.first.get(name, line))  # independent of the order in which tars finish

    def lines(self) -> Iterator[str]:
        """Yield one line per field."""
        for name, count in sorted(self.counts.items()):
            yield f"{self.first[name]}: taken as unknown" + (f" (in {count} samples)" if count > 1 else "")


def samples(tar: Path) -> Iterator[tuple[str, Members, tarfile.TarFile]]:
    """Yield (key, members by lower-case extension, archive) for each run of adjacent members with the same key.

    This is WebDataset's rule for samples.

    Raises:
        ShardError: if the tar is damaged or truncated; the message names the last complete member.
    """
    key, members, last, size = "", Members(), "none", tar.stat().st_size
    try:
        with tarfile.open(tar, "r:", tarinfo=TarMember) as archive:
            read = []
            for member in archive:
                read.append(member)
                last = member.name
            for named, member in _files(read):
                check_member(member)
                if member.offset_data + member.size > size:
                    raise EOFError(f"{named} goes beyond the end")
                if not named.isprintable():
                    raise ShardError(f"{tar}: member {named!r}: its name is not UTF-8 text; write the tar again")
                folder, _, name = named.rpartition("/")
                stem, _, extension = name.partition(".")
                sample_key = f"{folder}/{stem}" if folder else stem
                if sample_key != key and members:
                    yield key, members, archive
                    members = {}
                key = sample_key
                members[extension.lower()] = member, extension
            if archive.offset + tarfile.BLOCKSIZE > size:
                raise EOFError("no end-of-archive mark")
            if members:
                yield key, members, archive
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ShardError(f"{tar}: damaged or cut short ({error}); last complete member: {last}") from None


def _files(entries: Sequence[tarfile.TarInfo]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield (name, member with the content) for each file that extracting a tar would leave, in order.

    A later member replaces an earlier one of the same name; a link has the content of the member that it points to.
    """
    links = Links()
    for number, entry in enumerate(entries):
        name = member_name(entry.name)
        if entry.isfile():
            links.add(Member(name, number))
        elif entry.islnk():
            links.add(Member(name, number, hard=member_name(entry.linkname)))
        elif entry.issym():
            links.add(Member(name, number, soft=link_target(name, entry.linkname)))
    last = {member_name(one.name): number for number, one in enumerate(entries)}
    for number, entry in enumerate(entries):
        name = member_name(entry.name)
        if last[name] == number and is_data(name) and links.content(name) >= 0:
            yield name, entries[links.content(name)]


def _kind(tar: Path, key: str, members: Members) -> str:
    """Return the extension of the tile member."""
    kinds = [extension for extension in members if extension in KINDS]
    dotted = [extension for extension in members if extension.rpartition(".")[2] in KINDS and extension != "mask.npy"]
    if not kinds and dotted:
        base = key.rpartition("/")[2]
        file_name, better = f"{base}.{dotted[0]}", f"{base}.{dotted[0]}".rpartition(".")
        raise ShardError(
            f"{tar}: '{file_name}' has a dot before its extension, and WebDataset splits names at the first dot, so "
            f"that this one is the member '.{dotted[0]}' of a sample '{base}': write the tars with other names, e.g. "
            f"'{better[0].replace('.', '-')}.{better[2]}'"
        )
    if len(kinds) != 1:
        raise ShardError(f"{tar}: sample '{key}' has {len(kinds)} tile members of .tile, .npy and .tif; expected one")
    return kinds[0]


def index_tar(tar: Path, config: dict[str, Any], shape: list[int], sensor: Sensor) -> Doubts:
    """Write the index of one tar; returns the invalid fields of its JSON members."""
    doubts = Doubts()
    codec = build_codec(config)
    columns: dict[str, list] = {name: [] for name in TileColumns.model_fields}
    sums = BandSums.empty(shape[0])
    rejected: list[Rejected] = []
    values = np.empty(shape, dtype=np.int16)
    for key, members, archive in samples(tar):
        member = members[_kind(tar, key, members)][0]
        data = _read(archive, member)
        try:
            codec.decode(data, values)
        except ShardError as error:
            rejected.append(Rejected(path=f"{tar.name}!{member.name}", reason=str(error)))
            continue
        finally:
            counters().add(1, values.nbytes, len(data))
        row = _row(tar, key, members, archive, values, doubts)
        row |= {"offset": member.offset_data, "length": len(data), "checksum": checksum(data)}
        for name, value in row.items():
            columns[name].append(value)
        sums.add(BandSums.of(values))
    with open(tar, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    index = ShardIndex(
        format=FORMAT,
        shard=tar.name,
        size=tar.stat().st_size,
        sha256=digest,
        tiles=TileColumns(**columns),
        sums=Sums(**vars(sums)),
        rejected=rejected,
    )
    write_atomic(index_path(tar), to_json(index.sealed()))
    return doubts


def _row(
    tar: Path, key: str, members: Members, archive: tarfile.TarFile, values: np.ndarray, doubts: Doubts
) -> dict[str, Any]:
    """Return the remaining columns of a sample, from its JSON or with default values."""
    description: dict[str, Any] = {}
    if "json" in members:
        description, wrong = read_description(_read(archive, members["json"][0]))
        for name, reason in wrong.items():
            doubts.note(name, f"{tar.name}: sample '{key}': {name if name == 'JSON' else f'field {name!r}'} {reason}")
    row: dict[str, Any] = {name: description.get(name) for name in ("date", "lon", "lat", *QUALITY)}
    row |= {name: description.get(name, "") for name in ("scene", "split")}
    row |= {"location": description.get("location", key), "timestamp": description.get("timestamp", "00000")}
    row |= {"key": key, "nodata": float(np.mean((values == NODATA).any(0)))}
    mask = members.get("mask.npy")
    data = _read(archive, mask[0]) if mask else b""
    row |= {"mask_offset": mask[0].offset_data if mask else 0, "mask_length": len(data)}
    return row | {"mask_checksum": checksum(data) if mask else 0}


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    data = file.read() if file else b""
    if len(data) != member.size:
        raise EOFError(f"{member.name} is cut short")
    return data
