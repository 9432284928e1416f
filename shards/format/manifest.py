"""Metadata of a shard folder: one manifest for the dataset, one index beside each shard.

::

    DEST/
      manifest.json             the dataset: format, sensor, codec, shards with sizes and hashes, statistics
      tiles-000.npy             the tile table (shards/format/table.py); 001 after the first --append, and so on
      mu.npy  sigma.npy         per-band mean and standard deviation of digital numbers, float32
      shard-000000.tar          WebDataset tar: <key>.tile, <key>.json, <key>.mask.npy, adjacent
      shard-000000.index.json   its tiles with offsets and checksums, and their sums
      pack.json                 the options of `pack`, so that a restart continues the same work
      sources-000.tsv           the file list of the scan
"""

import hashlib
import json
import math
import re
from operator import add
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar

import numpy as np
from pydantic import Field, FiniteFloat, ValidationError, model_serializer, model_validator

from shards.config import StrictModel
from shards.config.errors import LONGEST_VALUE
from shards.config.fields import NpyName, TarName
from shards.errors import ShardError
from shards.files.untrusted import read_json_value
from shards.format.statistics import BandSums
from shards.sensors.sensor import Sensor, sensor_of_bands

FORMAT = 2
MANIFEST = "manifest.json"
MOST_TILE_BYTES = 1 << 31
"""Maximum bytes of a tile, reached by 202 bands at 2300 x 2300 px; larger claims are rejected to save memory."""
UNFINISHED = ": not a finished shard folder; run `python -m shards pack SOURCE DEST`"


Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Length = Annotated[int, Field(ge=0, lt=1 << 32)]
Checksum = Annotated[int, Field(ge=0, lt=1 << 64)]
Int64 = Annotated[int, Field(gt=-(1 << 63), lt=1 << 63)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""A SHA-256 in hex; its start also names the folder of node-local copies."""


class SealedModel(StrictModel):
    """A JSON file that contains the SHA-256 of its other fields, so that any flipped bit is detected."""

    format: int
    checksum: str = ""

    def sealed(self) -> Self:
        """Return a copy with its checksum."""
        text = json.dumps(self.model_dump(exclude={"checksum"}), sort_keys=True)
        return self.model_copy(update={"checksum": hashlib.sha256(text.encode()).hexdigest()})


class Sums(StrictModel):
    """JSON form of BandSums."""

    count: list[Count]
    total: list[Int64]
    squares: list[Annotated[int, Field(ge=0, lt=1 << 96)]]
    low: list[Int64]
    high: list[Int64]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len({len(column) for column in vars(self).values()}) > 1:
            raise ValueError("sums of different numbers of bands")
        return self


class Rejected(StrictModel):
    """A source tile that was set aside, and the reason."""

    path: str
    reason: str


class TileColumns(StrictModel):
    """The tiles of a shard, one list per column of the tile table (shards/format/table.py); None for unknown values."""

    key: list[str]
    location: list[str]
    timestamp: list[str]
    scene: list[str]
    split: list[str]
    offset: list[Count]
    length: list[Length]
    checksum: list[Checksum]
    mask_offset: list[Count]
    mask_length: list[Length]
    mask_checksum: list[Checksum]
    lon: list[float | None]
    lat: list[float | None]
    date: list[str | None]
    cloud: list[float | None]
    cloud_shadow: list[float | None]
    haze: list[float | None]
    cirrus: list[float | None]
    snow: list[float | None]
    nodata: list[float | None]

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if len({len(column) for column in vars(self).values()}) > 1:
            raise ValueError("columns of different lengths")
        return self


class ShardIndex(SealedModel):
    """One shard: its size in bytes and SHA-256, its tiles in file order, and the sums over their pixels."""

    shard: TarName
    size: Count
    sha256: Sha256
    tiles: TileColumns
    sums: Sums
    rejected: list[Rejected]

    @model_validator(mode="after")
    def _inside(self) -> Self:
        """Check that every tile lies within its shard."""
        tiles = self.tiles
        ends = (*map(add, tiles.offset, tiles.length), *map(add, tiles.mask_offset, tiles.mask_length))
        if max(ends, default=0) > self.size:
            raise ValueError("a tile lies beyond the end of its shard")
        return self


class ShardEntry(StrictModel):
    """A shard in the manifest; ``size`` is in bytes, hashes are SHA-256."""

    name: TarName
    tiles: Count
    size: Count
    sha256: Sha256
    index_sha256: Sha256


class Origin(StrictModel):
    """The dataset that `transcode` made another one from: its content hash, codec and bound on errors.

    ``max_error`` is the bound of its pixels against the tiles that were packed (shards/format/error_bounds.py), empty
    if they are equal.
    """

    content_hash: Sha256
    codec: dict[str, Any]
    max_error: str


class Manifest(SealedModel):
    """Description of the dataset. ``content_hash`` determines the order of samples and is stored in checkpoints.

    ``made_from`` is omitted from the file if the dataset was not made from another one.
    """

    content_hash: Sha256
    generations: Count  # 1 plus the number of --append runs
    sensor: str
    wavelength_nm: list[FiniteFloat]
    fwhm_nm: list[FiniteFloat]
    scale: FiniteFloat
    nodata: int
    tile_shape: list[Annotated[int, Field(gt=0)]]
    dtype: str
    codec: dict[str, Any]
    tiles: Count
    locations: Count
    rejected: Count
    mean: list[FiniteFloat]
    std: list[FiniteFloat]
    sums: Sums
    table: NpyName  # name of the tile table's file
    table_sha256: Sha256
    shards: list[ShardEntry]
    made_from: Origin | None = None

    @model_serializer(mode="wrap")
    def _without_origin(self, serialize: Any) -> dict[str, Any]:
        content = serialize(self)
        if self.made_from is None:  # checksums of earlier manifests stay valid
            content.pop("made_from", None)
        return content

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [shard.name for shard in self.shards]
        if len(set(names)) < len(names):
            twice = next(name for number, name in enumerate(names) if name in names[:number])
            raise ValueError(f"two shards have the same name, '{twice}'")
        if len(self.tile_shape) != 3 or 2 * math.prod(self.tile_shape) > MOST_TILE_BYTES:
            raise ValueError(f"tiles of {self.tile_shape} are not images (bands, height, width) of up to 2 GiB")
        bands = self.tile_shape[0]
        columns = (self.wavelength_nm, self.fwhm_nm, self.mean, self.std, *vars(self.sums).values())
        if any(len(column) != bands for column in columns):
            raise ValueError(f"wavelengths, widths or statistics don't match tiles of {bands} bands")
        return self

    @property
    def mu(self) -> np.ndarray:
        """Mean digital number of each band, float32 (bands,)."""
        return np.asarray(self.mean, dtype=np.float32)

    @property
    def sigma(self) -> np.ndarray:
        """Standard deviation of the digital numbers of each band, float32 (bands,)."""
        return np.asarray(self.std, dtype=np.float32)


def band_sums(sums: Sums) -> BandSums:
    """Return the sums of an index or manifest as `BandSums`, which can be merged."""
    return BandSums(**sums.model_dump())


def sensor_of(manifest: Manifest) -> Sensor:
    """Return the sensor of a dataset, with the bands in its manifest."""
    return sensor_of_bands(manifest.sensor, manifest.wavelength_nm, manifest.fwhm_nm, manifest.scale)


def content_hash(entries: list[ShardEntry], codec: dict[str, Any], sensor: str) -> str:
    """Return the SHA-256 of everything that determines decoded tiles: shard hashes, codec and `Sensor.identity`."""
    text = json.dumps([FORMAT, sensor, codec, [entry.sha256 for entry in entries]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(model: StrictModel) -> str:
    """Serialize a model deterministically: equal content gives equal text."""
    return json.dumps(model.model_dump(), indent=1, sort_keys=True) + "\n"


Model = TypeVar("Model", bound=SealedModel)


def first_problem(error: ValidationError) -> str:
    """Return the first validation error of a model as part of a line."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])[:80]
    what = " ".join(first["msg"].removeprefix("Value error, ").split())[:LONGEST_VALUE]
    return f"key '{where}': {what}" if where else what


def parse_json(data: bytes, model: type[Model], name: str) -> Model:
    """Parse a manifest or an index from bytes.

    Args:
        name: name of the file, for messages.

    Raises:
        ShardError: if it is truncated, damaged, invalid or in another format.
    """
    try:
        content = read_json_value(data)
    except ValueError as error:  # also raised for bytes that are not UTF-8
        raise ShardError(f"{name}: damaged or cut short ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        version = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ShardError(f"{name}: format {version!s:.40}, but this version reads {FORMAT}")
    try:
        parsed = model.model_validate(content)
    except ValidationError as error:
        raise ShardError(f"{name}: damaged: {first_problem(error)}") from None
    except UnicodeEncodeError:  # raised by pydantic for a key that is not valid text
        raise ShardError(f"{name}: damaged: a key holds half of a character") from None
    if parsed.checksum != parsed.sealed().checksum:
        raise ShardError(f"{name}: damaged: its checksum does not match; restore it, or remove it and pack again")
    return parsed


def read_json(path: Path, model: type[Model]) -> Model:
    """Read a manifest or an index; raises ShardError if it is missing or `parse_json` rejects it."""
    try:
        return parse_json(path.read_bytes(), model, str(path))
    except FileNotFoundError:
        raise ShardError(f"{path}: missing{UNFINISHED if path.name == MANIFEST else ''}") from None
    except OSError as error:
        raise ShardError(f"{path}: can't be read: {error.strerror}") from None


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a shard folder; raises ShardError if there is none."""
    if re.match(r"\w+:/", str(folder)):
        raise ShardError(f"{folder}: a URL, but this command reads only folders; copy the shards to a disk first")
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except OSError as error:  # no access to a parent folder
        raise ShardError(f"{folder}: can't be read: {error.strerror}; ask its owner for access") from None
    if exists and not is_folder:
        raise ShardError(f"{folder}: a file, not a folder of shards; name the folder that `pack` wrote")
    if not is_folder:
        raise ShardError(f"{folder}: no such folder of shards; make one with `python -m shards pack SOURCE {folder}`")
    return read_json(folder / MANIFEST, Manifest)
