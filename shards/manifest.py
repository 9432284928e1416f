"""What a folder of shards says of itself: one manifest for the dataset, one index beside each shard.

::

    DEST/
      manifest.json             the dataset: format, sensor, codec, shards with sizes and hashes, statistics
      mu.npy  sigma.npy         per-band mean and standard deviation of digital numbers, float32
      shard-000000.tar          WebDataset tar: <key>.tile, <key>.json, adjacent
      shard-000000.index.json   where each tile lies in it, with checksums
      pack.json                 what `pack` was told, so that a restart continues the same work
"""

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ValidationError

from shards.config import ConfigModel
from shards.errors import ShardError
from shards.statistics import BandSums

FORMAT = 1
MANIFEST = "manifest.json"


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


class ShardIndex(ConfigModel):
    """One shard: a column per property, an entry per tile, in file order.

    ``offset`` and ``length`` are bytes of the encoded tile in the tar; ``crc32c`` is the checksum of
    those bytes; ``nodata_share`` is the part of the tile's pixels with a missing band.
    """

    format: int
    shard: str
    size: int
    sha256: str
    key: list[str]
    location: list[str]
    timestamp: list[str]
    offset: list[int]
    length: list[int]
    crc32c: list[int]
    nodata_share: list[float]
    sums: Sums
    rejected: list[Rejected]


class ShardEntry(ConfigModel):
    """A shard as the manifest lists it; sizes in bytes, hashes are SHA-256."""

    name: str
    tiles: int
    size: int
    sha256: str
    index_sha256: str


class Manifest(ConfigModel):
    """The dataset. ``content_hash`` names its content: it fixes the order of samples and is kept in checkpoints."""

    format: int
    content_hash: str
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
    shards: list[ShardEntry]
    checksum: str = ""  # SHA-256 of all the rest as JSON

    def sealed(self) -> "Manifest":
        """The same with its checksum."""
        text = json.dumps(self.model_dump(exclude={"checksum"}), sort_keys=True)
        return self.model_copy(update={"checksum": hashlib.sha256(text.encode()).hexdigest()})

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


def content_hash(entries: list[ShardEntry], codec: dict[str, Any], sensor: str) -> str:
    """SHA-256 over everything that decides what a reader gets: the shards' hashes, codec and sensor."""
    text = json.dumps([FORMAT, sensor, codec, [entry.sha256 for entry in entries]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def to_json(model: ConfigModel) -> str:
    """The same text for the same content."""
    return json.dumps(model.model_dump(), indent=1, sort_keys=True) + "\n"


Model = TypeVar("Model", Manifest, ShardIndex)


def read_json(path: Path, model: type[Model]) -> Model:
    """Read a manifest or an index.

    Raises:
        ShardError: missing, cut short, of another format, or not what it should be.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        hint = "not a finished shard folder; run `python -m shards pack SOURCE DEST`" if path.name == MANIFEST else ""
        raise ShardError(f"{path}: missing{': ' + hint if hint else ''}") from None
    except (OSError, ValueError) as error:
        raise ShardError(f"{path}: can't be read, perhaps cut short ({error})") from None
    if isinstance(data, dict) and data.get("format") != FORMAT:
        raise ShardError(f"{path}: format {data.get('format')}, this version reads {FORMAT}")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ShardError(f"{path}: damaged: key '{where}': {first['msg']}") from None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a shard folder; raises ShardError where there is none."""
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder of shards; make one with `python -m shards pack SOURCE {folder}`")
    manifest = read_json(folder / MANIFEST, Manifest)
    if manifest.checksum != manifest.sealed().checksum:
        raise ShardError(f"{folder / MANIFEST}: damaged: its checksum does not fit; remove it and pack again")
    return manifest
