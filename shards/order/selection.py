"""Typed configs of the tiles to read and their order; no numpy import, so that wrong keys are reported quickly."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel
from shards.config.fields import Day, PathText, Positive, Share, Wording

Longitude = Annotated[float, Field(ge=-180, le=180)]
Latitude = Annotated[float, Field(ge=-90, le=90)]

Bounds = Annotated[
    tuple[Longitude, Latitude, Longitude, Latitude],
    Field(strict=False),
    Wording("a list of west, south, east and north in degrees"),
]


class ViewConfig(ConfigModel):
    """Conditions that a tile must all meet; by default every tile passes.

    A tile with an unknown position, date or cloud fraction does not meet a condition on it.
    """

    bbox: Bounds | None = None
    """West, south, east and north of tile centers, in degrees (WGS 84); west can exceed east (across the date line)."""
    begin: Day | None = None
    """First day of acquisition, e.g. 2022-06-30."""
    end: Day | None = None
    """Last day of acquisition."""
    max_cloud: Share | None = None
    """Maximum fraction of cloudy pixels."""
    max_nodata: Share | None = None
    """Maximum fraction of missing pixels."""
    split: Literal["train", "val", "test"] | None = None
    """Split of a labeled dataset."""
    keep: PathText | None = None
    """Text file of the scenes, locations or sample keys to use, one per line (``#`` starts a comment)."""
    deny: PathText | None = None
    """Text file like ``keep`` of those to exclude, such as the scenes of a test set."""

    @model_validator(mode="after")
    def _begin_before_end(self) -> Self:
        if self.bbox is not None and self.bbox[1] > self.bbox[3]:
            raise ValueError(
                f".bbox: south {self.bbox[1]} lies above north {self.bbox[3]}: give west, south, east, north"
            )
        if self.begin and self.end and self.begin > self.end:
            raise ValueError(f".begin {self.begin} lies after .end {self.end}: swap them")
        return self


class OrderConfig(ConfigModel):
    """Order of the samples in an epoch."""

    shuffle: Literal["global", "windowed"] = "global"
    """``global`` shuffles all units, so that every read is at a random offset: for NVMe, page cache and Lustre.
    ``windowed`` shuffles shards and, within ``window`` of them at a time, tiles: for object stores, disks, staging."""
    window: Positive = 16
    """Number of shards that ``windowed`` reads at a time."""
    sampling: Literal["tile", "location"] = "tile"
    """An epoch visits every tile, or every location with one of its timestamps."""
