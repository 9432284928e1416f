"""The record of a pack, ``pack.json``: its options, and one generation for each run that added tiles."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from numcodecs.abc import Codec
from pydantic import Field, model_serializer, model_validator

from shards.config import StrictModel
from shards.config.fields import PlainName
from shards.errors import ShardError
from shards.files.atomic import write_atomic
from shards.format.codec_registry import codec_of
from shards.format.manifest import FORMAT, SealedModel, read_json, to_json
from shards.format.table import QUALITY
from shards.sensors.sensor import Sensor, get_sensor
from shards.sources.limits import SceneLimits

RECORD = "pack.json"

MOST_PX = 1 << 15
"""Largest side of a tile."""

NumTiles = Annotated[int, Field(ge=0, lt=1 << 63)]
NumShards = Annotated[int, Field(ge=0, lt=1_000_000)]
"""Names of shards have six digits."""


class PackOptions(StrictModel):
    """Options that decide the bytes of the result: a restart and an ``--append`` must have the same.

    Fields that were not given are left out of the file, so that the checksum of a record that an earlier version
    wrote stays valid.

    Attributes:
        sensor: name of the sensor.
        band_table: `Sensor.to_dict` of a sensor that is not registered.
        codec: as for `pack --codec`.
        size: of the tiles in pixels; None until the scan has found it.
        limits: on tiles cut from products, by the fields of `SceneLimits`.
        labels: whether tiles have labels; ``align``, ``label_field`` and ``label_layer`` say how these are read.
        cut: whether rasters larger than a tile are cut.
    """

    sensor: str
    band_table: dict[str, Any] | None = None
    codec: str
    tiles_per_shard: Annotated[int, Field(gt=0)]
    seed: int
    size: Annotated[int, Field(gt=0, le=MOST_PX)] | None
    pattern: str | None
    limits: dict[str, float | int | None]
    labels: bool
    align: Literal["nearest"] | None = None
    label_field: str | None = None
    label_layer: str | None = None
    cut: bool = False

    @model_validator(mode="after")
    def _known_limits(self) -> Self:
        if unknown := self.limits.keys() - set(QUALITY):
            raise ValueError(f"option 'limits' has '{min(unknown)}', which is no share of pixels")
        return self

    @model_serializer(mode="wrap")
    def _given(self, serialize: Any) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if name in self.model_fields_set}

    @property
    def scene_limits(self) -> SceneLimits:
        return SceneLimits(**self.limits)


class Generation(StrictModel):
    """One run of `pack`: the first one, or one ``--append``.

    Attributes:
        bundles: (name, fingerprint) of the archives and products that it reads. The list of tiles exists only after
            they have been read.
        probes: fingerprint of a few of the files.
        list_name: of the file list; empty until it is known.
    """

    bundles: list[list[str]] = Field(default_factory=list)
    probes: str = ""
    tiles: NumTiles = 0
    first_shard: NumShards = 0
    shards: NumShards = 0
    list_name: PlainName | Literal[""] = ""
    list_sha256: str = ""


class PackRecord(SealedModel):
    """The options of a pack and what its scans found: a restart continues the same work."""

    options: PackOptions
    generations: list[Generation]

    @model_validator(mode="after")
    def _size_is_known(self) -> Self:
        if self.generations and self.options.size is None:
            raise ValueError("option 'size' is missing after a scan")
        return self

    @property
    def sensor(self) -> Sensor:
        """The sensor of the tiles; of a band table the copy that was made when `pack` began."""
        table = self.options.band_table
        return get_sensor(self.options.sensor) if table is None else Sensor.from_dict(table)

    @property
    def codec(self) -> Codec:
        """The tile codec."""
        return codec_of(self.options.codec)

    @property
    def tile_size(self) -> int:
        """Height and width of the tiles in pixels, known after the first scan."""
        assert self.options.size is not None
        return self.options.size

    def with_options(self, **changes: Any) -> Self:
        """Return the record with some options changed."""
        return self.model_copy(update={"options": self.options.model_copy(update=changes)})

    def with_generations(self, generations: list[Generation]) -> Self:
        """Return the record with other generations."""
        return self.model_copy(update={"generations": generations})


def read_record(folder: Path) -> PackRecord:
    """Return the record of a folder; raises ShardError where nothing was begun."""
    record = read_json(folder / RECORD, PackRecord)
    if not record.generations:
        raise ShardError(f"{folder / RECORD}: damaged: nothing was begun; remove {folder} and pack again")
    return record


def write_record(folder: Path, record: PackRecord) -> None:
    """Save the record in one step."""
    write_atomic(folder / RECORD, to_json(record.model_copy(update={"format": FORMAT}).sealed()))
