"""What a folder of shards says of itself: one manifest for the dataset, one index beside each shard.

::

    DEST/
      manifest.json             the dataset: format, sensor, codec, shards with sizes and hashes, statistics
      tiles-000.npy             the tile table (shards/table.py); 001 after the first --append, and so on
      mu.npy  sigma.npy         per-band mean and standard deviation of digital numbers, float32
      shard-000000.tar          WebDataset tar: <key>.tile, <key>.json, <key>.mask.npy, adjacent
      shard-000000.index.json   its tiles, where they lie, checksums and sums
      pack.json                 what `pack` was told, so that a restart continues the same work
      sources-000.tsv           the file list of the one scan
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from pydantic import ValidationError

from shards.config import ConfigModel
from shards.errors import ShardError
from shards.sensors import Sensor, sensor_of_bands
from shards.statistics import BandSums

FORMAT = 2
MANIFEST = "manifest.json"
UNFINISHED = ": not a finished shard folder; run `python -m shards pack SOURCE DEST`"


class SealedModel(ConfigModel):
    """A JSON file that carries the SHA-256 of all the rest of itself: a flipped bit anywhere is noticed."""

    format: int
    checksum: str = ""

    def sealed(self) -> Self:
        """The same with its checksum."""
        text = json.dumps(self.model_dump(exclude={"checksum"}), sort_keys=True)
        return self.model_copy(update={"checksum": hashlib.sha256(text.encode()).hexdigest()})


class Sums(ConfigModel):
    """JSON form of BandSums."""

    count: list[int]
    total: list[int]
    squares: list[int]
    low: list[int]
    high: list[int]


class Rejected(ConfigModel):
    """A source tile that was set aside, and why."""

    path: str
    reason: str


class TileColumns(ConfigModel):
    """The tiles of a shard, a list per column of the tile table (shards/table.py); None where unknown."""

    key: list[str]
    location: list[str]
    timestamp: list[str]
    scene: list[str]
    split: list[str]
    offset: list[int]
    length: list[int]
    checksum: list[int]
    mask_offset: list[int]
    mask_length: list[int]
    mask_checksum: list[int]
    lon: list[float | None]
    lat: list[float | None]
    date: list[str | None]
    cloud: list[float | None]
    cloud_shadow: list[float | None]
    haze: list[float | None]
    cirrus: list[float | None]
    snow: list[float | None]
    nodata: list[float | None]


class ShardIndex(SealedModel):
    """One shard: its size in bytes and SHA-256, its tiles in file order, and the sums over their pixels."""

    shard: str
    size: int
    sha256: str
    tiles: TileColumns
    sums: Sums
    rejected: list[Rejected]


class ShardEntry(ConfigModel):
    """A shard as the manifest lists it; sizes in bytes, hashes are SHA-256."""

    name: str
    tiles: int
    size: int
    sha256: str
    index_sha256: str


class Manifest(SealedModel):
    """The dataset. ``content_hash`` names its content: it fixes the order of samples and is kept in checkpoints."""

    content_hash: str
    generations: int  # one, and one more for every --append
    sensor: str
    wavelength_nm: list[float]
    fwhm_nm: list[float]
    scale: float
    nodata: int
    tile_shape: list[int]
    dtype: str
    codec: dict[str, Any]
    tiles: int
    locations: int
    rejected: int
    mean: list[float]
    std: list[float]
    sums: Sums
    table: str  # name of the tile table's file
    table_sha256: str
    shards: list[ShardEntry]

    @property
    def mu(self) -> np.ndarray:
        """float32 (bands,): mean digital number."""
        return np.asarray(self.mean, dtype=np.float32)

    @property
    def sigma(self) -> np.ndarray:
        """float32 (bands,): standard deviation of digital numbers."""
        return np.asarray(self.std, dtype=np.float32)


def band_sums(sums: Sums) -> BandSums:
    """The sums of an index or manifest, ready to be merged."""
    return BandSums(**sums.model_dump())


def sensor_of(manifest: Manifest) -> Sensor:
    """The sensor of a dataset, by the bands that its manifest lists."""
    return sensor_of_bands(manifest.sensor, manifest.wavelength_nm, manifest.fwhm_nm, manifest.scale)


def content_hash(entries: list[ShardEntry], codec: dict[str, Any], sensor: str) -> str:
    """SHA-256 over everything that decides what a reader gets: the shards' hashes, codec and `Sensor.identity`."""
    text = json.dumps([FORMAT, sensor, codec, [entry.sha256 for entry in entries]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(model: ConfigModel) -> str:
    """The same text for the same content."""
    return json.dumps(model.model_dump(), indent=1, sort_keys=True) + "\n"


Model = TypeVar("Model", bound=SealedModel)


def parse_json(data: bytes, model: type[Model], name: str) -> Model:
    """A manifest or an index from its bytes.

    Args:
        name: of the file, for messages.

    Raises:
        ShardError: cut short, of another format, damaged, or not what it should be.
    """
    try:
        content = json.loads(data)
    except ValueError as error:  # bytes that are no UTF-8 too
        raise ShardError(f"{name}: damaged or cut short ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise ShardError(f"{name}: format {found!s:.40}, this version reads {FORMAT}")
    try:
        parsed = model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ShardError(f"{name}: damaged: key '{where}': {first['msg']}") from None
    if parsed.checksum != parsed.sealed().checksum:
        raise ShardError(f"{name}: damaged: its checksum does not fit; restore it, or remove it and pack again")
    return parsed


def read_json(path: Path, model: type[Model]) -> Model:
    """Read a manifest or an index; raises ShardError where it is missing or `parse_json` refuses it."""
    try:
        return parse_json(path.read_bytes(), model, str(path))
    except FileNotFoundError:
        raise ShardError(f"{path}: missing{UNFINISHED if path.name == MANIFEST else ''}") from None
    except OSError as error:
        raise ShardError(f"{path}: can't be read: {error.strerror}") from None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder; raises ShardError where there is none."""
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder of shards; make one with `python -m shards pack SOURCE {folder}`")
    return read_json(folder / MANIFEST, Manifest)
