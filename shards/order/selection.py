"""The typed config of what is read and in which order. No numpy here: a wrong key is answered before anything loads."""

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

    Attributes:
        bbox: west, south, east, north in degrees (WGS 84), of tile centers. West may exceed east
            (across the date line).
        begin, end: first and last day of acquisition, ISO.
        max_cloud, max_nodata: largest share of a tile's pixels.
        split: of a labeled dataset.
        keep, deny: text files, one scene, location or sample key a line; ``#`` begins a comment. Pretraining
            leaves out the scenes of a test set by ``deny``.
    """

    bbox: Bounds | None = None
    begin: Day | None = None
    end: Day | None = None
    max_cloud: Share | None = None
    max_nodata: Share | None = None
    split: Literal["train", "val", "test"] | None = None
    keep: PathText | None = None
    deny: PathText | None = None

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
    """How an epoch is ordered.

    ``global`` shuffles all units: every read is at a random place, right for NVMe, page cache and Lustre.
    ``windowed`` reads ``window`` shards at a time in shuffled order and shuffles inside them, right for
    object stores, disks and staging. ``sampling``: an epoch visits every tile, or every location with one
    of its timestamps.
    """

    shuffle: Literal["global", "windowed"] = "global"
    window: Positive = 16
    sampling: Literal["tile", "location"] = "tile"
