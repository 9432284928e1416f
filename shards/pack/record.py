"""The record of `pack`, ``pack.json``: its options, and one generation for each run that added tiles."""

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
"""Maximum height and width of a tile in pixels."""

NumTiles = Annotated[int, Field(ge=0, lt=1 << 63)]
NumShards = Annotated[int, Field(ge=0, lt=1_000_000)]
"""Limited by the six digits in shard names."""


class PackOptions(StrictModel):
    """Options that determine the bytes of the result; a restart and an ``--append`` must use the same.

    Fields that were not given are omitted from the file, so that checksums of records written by earlier versions stay
    valid.

    Attributes:
        sensor: name of the sensor.
        band_table: `Sensor.to_dict` of a sensor that is not registered.
        codec: as for `pack --codec`.
        size: tile size in pixels; None until the scan has determined it.
        limits: limits on tiles cut from products, by the fields of `SceneLimits`.
        labels: whether tiles have labels; ``align``, ``label_field`` and ``label_layer`` define how they are read.
        cut: whether rasters larger than a tile are cut.
        mask_quality: quality layers of products whose flagged values became missing.
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
    mask_quality: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _known_limits(self) -> Self:
        if unknown := self.limits.keys() - set(QUALITY):
            raise ValueError(f"option 'limits' has '{min(unknown)}', which is not a share of pixels")
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
        bundles: (name, fingerprint) of the archives and products to read. The list of tiles exists only after they
            have been read.
        probes: fingerprint of a few of the files.
        list_name: name of the file list; empty until it is known.
    """

    bundles: list[list[str]] = Field(default_factory=list)
    probes: str = ""
    tiles: NumTiles = 0
    first_shard: NumShards = 0
    shards: NumShards = 0
    list_name: PlainName | Literal[""] = ""
    list_sha256: str = ""


class PackRecord(SealedModel):
    """The options and scan results of `pack`, with which a restart continues the same work."""

    options: PackOptions
    generations: list[Generation]

    @model_validator(mode="after")
    def _size_is_known(self) -> Self:
        if self.generations and self.options.size is None:
            raise ValueError("option 'size' is missing after a scan")
        return self

    @property
    def sensor(self) -> Sensor:
        """The sensor of the tiles; band tables are used as they were when `pack` started."""
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
    """Read the record of a folder; raises ShardError if it is missing or has no generation."""
    record = read_json(folder / RECORD, PackRecord)
    if not record.generations:
        raise ShardError(f"{folder / RECORD}: damaged: it lists no packing; remove {folder} and pack again")
    return record


def write_record(folder: Path, record: PackRecord) -> None:
    """Save the record atomically."""
    write_atomic(folder / RECORD, to_json(record.model_copy(update={"format": FORMAT}).sealed()))
