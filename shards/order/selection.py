"""Typed configs of the tiles to read and their order; no numpy import, so that wrong keys are reported quickly."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel
from shards.config.fields import Day, PathText, Positive, Says, Share

Longitude = Annotated[float, Field(ge=-180, le=180)]
Latitude = Annotated[float, Field(ge=-90, le=90)]

Bounds = Annotated[
    tuple[Longitude, Latitude, Longitude, Latitude],
    Field(strict=False),
    Says("a list of west, south, east and north in degrees"),
]


class ViewConfig(ConfigModel):
    """Conditions that a tile must meet, all of them; the default lets every tile pass.

    A tile of unknown position, date or cloud share does not meet a condition on it.
    """

    bbox: Bounds | None = None
    """West, south, east and north of tile centers, in degrees (WGS 84); west may exceed east (across the date line)."""
    begin: Day | None = None
    """First day of acquisition, as 2022-06-30."""
    end: Day | None = None
    """Last day of acquisition."""
    max_cloud: Share | None = None
    """Largest share of clouded pixels."""
    max_nodata: Share | None = None
    """Largest share of missing pixels."""
    split: Literal["train", "val", "test"] | None = None
    """Split of a labeled dataset."""
    keep: PathText | None = None
    """Text file of scenes, locations or sample keys, one a line (``#`` begins a comment): only these are used."""
    deny: PathText | None = None
    """Text file as ``keep``: these are left out, such as the scenes of a test set."""

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
    """How an epoch is ordered."""

    shuffle: Literal["global", "windowed"] = "global"
    """``global`` shuffles all units, so that every read is at a random place: for NVMe, page cache and Lustre.
    ``windowed`` shuffles shards and, inside ``window`` of them at a time, tiles: for object stores, disks, staging."""
    window: Positive = 16
    """Shards read at a time by ``windowed``."""
    sampling: Literal["tile", "location"] = "tile"
    """An epoch visits every tile, or every location with one of its timestamps."""
