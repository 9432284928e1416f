"""The file list: what one scan of the archive found, kept as text, and the cut of it into shards.

An archive of 415,000 directories on Lustre is scanned once. The list is saved beside the shards; a
restart, every part of an array job and the merge read it instead of the archive. It also fixes the
cut before a byte is encoded: locations are permuted by a seed, and a shard closes at the first whole
location that reaches ``tiles_per_shard``.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shards.config import StrictModel
from shards.config.fields import PlainName
from shards.errors import ShardError, SourceError
from shards.files.atomic import write_atomic
from shards.files.names import inner_path, plain_name
from shards.format.codec import PRESETS
from shards.format.manifest import FORMAT, SealedModel, read_json, to_json
from shards.format.table import QUALITY
from shards.sensors.sensor import Sensor, get_sensor
from shards.sources.layouts import TileSource

RECORD = "pack.json"
BAND_TABLE = "band_table"

MOST_PX = 1 << 15
"""Of a tile's side."""

NumTiles = Annotated[int, Field(ge=0, lt=1 << 63)]
NumShards = Annotated[int, Field(ge=0, lt=1_000_000)]
"""Their names have six digits."""


@dataclass(frozen=True)
class ListedTile:
    """A line of the file list: a tile, and for one that came out of a bundle where it waits.

    Attributes:
        spooled: ``<piece>:<row>`` in the spool folder, or empty for a file of the source directory.
        rejected: why the tile can't be used, where that is known already.
    """

    source: TileSource
    spooled: str = ""
    rejected: str = ""


class Generation(StrictModel):
    """One run of `pack`: the first one, or one `--append`.

    ``bundles`` are the archives and products it reads, with their fingerprints; then the list exists
    only after they have been spooled. ``probes`` is a fingerprint of a few of the files.
    """

    bundles: list[list[str]] = Field(default_factory=list)  # (name, fingerprint)
    probes: str = ""
    tiles: NumTiles = 0
    first_shard: NumShards = 0
    shards: NumShards = 0
    list_name: PlainName | Literal[""] = ""
    list_sha256: str = ""


class PackRecord(SealedModel):
    """What `pack` was told and what it found: a restart must continue the same work."""

    options: dict
    generations: list[Generation]

    @property
    def sensor(self) -> Sensor:
        """Whose bands the tiles have: of a band table of one's own the copy that was made when `pack` began."""
        stored = self.options.get(BAND_TABLE)
        return get_sensor(self.options["sensor"]) if stored is None else Sensor.from_dict(stored)

    @model_validator(mode="after")
    def _known_options(self) -> Self:
        for name, kind in _OPTIONS.items():
            if not isinstance(self.options.get(name), kind):
                raise ValueError(f"option '{name}' is missing, or no {kind.__name__}")
        for name, kind in (("size", int), ("pattern", str)):
            value = self.options.get(name, False)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                raise ValueError(f"option '{name}' is missing, or neither null nor {kind.__name__}")
        size, limits = self.options["size"], self.options["limits"]
        if self.options["codec"] not in PRESETS:
            raise ValueError(f"{self.options['codec']!r:.40} is no codec of this version")
        unknown_size = size is None and bool(self.generations)  # a scan finds it out
        if self.options["tiles_per_shard"] < 1 or unknown_size or not (size is None or 0 < size <= MOST_PX):
            raise ValueError("sizes that no shards and tiles have")
        if any(name not in QUALITY or not isinstance(value, float | int | None) for name, value in limits.items()):
            raise ValueError("option 'limits' names no shares of pixels")
        return self


_OPTIONS = {"sensor": str, "codec": str, "tiles_per_shard": int, "seed": int, "limits": dict, "labels": bool}


def sensor_options(sensor: Sensor) -> dict:
    """What a record keeps of a sensor: its name, and the bands that the registry doesn't have."""
    return {"sensor": sensor.name} | ({} if sensor.is_registered else {BAND_TABLE: sensor.to_dict()})


def cut_shards(tiles: Sequence[ListedTile], tiles_per_shard: int, seed: int) -> list[list[ListedTile]]:
    """Permute the locations by a seed and cut them into shards, timestamps of a location together.

    Args:
        tiles: sorted by location.
    """
    groups = [list(group) for _, group in groupby(tiles, key=lambda tile: tile.source.location)]
    groups.sort(key=lambda group: hashlib.sha256(f"{seed}/{group[0].source.location}".encode()).digest())
    shards: list[list[ListedTile]] = [[]]
    for group in groups:
        if len(shards[-1]) >= tiles_per_shard:
            shards.append([])
        shards[-1].extend(group)
    return shards


def write_list(folder: Path, number: int, tiles: Sequence[ListedTile]) -> tuple[str, str]:
    """Save the list of a generation; returns its file name and SHA-256."""
    name = f"sources-{number:03d}.tsv"
    lines = ["\t".join([*_SOURCE_FIELDS, "spooled", "rejected"])]
    for tile in tiles:
        row = [*astuple(tile.source), tile.spooled, " ".join(tile.rejected.split())]
        if any("\t" in text or "\n" in text or "\r" in text for text in row):
            raise SourceError(f"{tile.source.path!r}: a tab or line break in a file name; rename the file")
        lines.append("\t".join(row))
    data = ("\n".join(lines) + "\n").encode(errors="surrogateescape")
    write_atomic(folder / name, data)
    return name, hashlib.sha256(data).hexdigest()


def read_list(folder: Path, generation: Generation) -> list[ListedTile]:
    """The list of a generation; raises ShardError where it is not the one that was saved."""
    path = folder / generation.list_name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ShardError(f"{path}: can't be read: {error.strerror}; remove {folder} and pack again") from None
    if hashlib.sha256(data).hexdigest() != generation.list_sha256:
        raise ShardError(f"{path}: was changed after the scan; remove {folder} and pack again")
    lines = data.decode(errors="surrogateescape").split("\n")[1:-1]
    try:
        return [_parse_line(line) for line in lines]
    except ValueError as error:
        raise ShardError(f"{path}: damaged ({error}); remove {folder} and pack again") from None


def _parse_line(line: str) -> ListedTile:
    """A tile of the list; raises ValueError where it is none."""
    row = line.split("\t")
    if len(row) != len(_SOURCE_FIELDS) + 2:
        raise ValueError(f"{len(row)} columns where {len(_SOURCE_FIELDS) + 2} were written")
    source, spooled = TileSource(*row[:-2]), row[-2]
    inner_path(source.path)
    if source.mask:
        inner_path(source.mask)
    if spooled:
        piece, _, number = spooled.rpartition(":")
        plain_name(piece)
        int(number)
    return ListedTile(source, spooled, row[-1])


_SOURCE_FIELDS = [field.name for field in fields(TileSource)]


def read_record(folder: Path) -> PackRecord:
    """What was begun in a folder; raises ShardError where nothing was."""
    record = read_json(folder / RECORD, PackRecord)
    if not record.generations:
        raise ShardError(f"{folder / RECORD}: damaged: nothing was begun; remove {folder} and pack again")
    return record


def write_record(folder: Path, record: PackRecord) -> None:
    """Save what is being done, in one step."""
    write_atomic(folder / RECORD, to_json(record.model_copy(update={"format": FORMAT}).sealed()))
