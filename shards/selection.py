"""The typed config of what is read and in which order. No numpy here: a wrong key is answered before anything loads."""

from datetime import date
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from shards.config import ConfigModel

Share = Annotated[float, Field(ge=0, le=1)]


def _iso(value: object) -> object:
    """YAML makes a date of 2022-06-30; configs keep it as text, which JSON has too."""
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, str):
        date.fromisoformat(value)
    return value


Day = Annotated[str, BeforeValidator(_iso)]


class ViewConfig(ConfigModel):
    """Conditions that a tile must meet, all of them; the default lets every tile pass.

    A tile of unknown position, date or cloud share does not meet a condition on it.

    Attributes:
        bbox: west, south, east, north in degrees (WGS 84), of tile centres. West may exceed east
            (across the date line).
        begin, end: first and last day of acquisition, ISO.
        max_cloud, max_nodata: largest share of a tile's pixels.
        split: of a labelled dataset.
        keep, deny: text files, one scene, location or sample key a line; ``#`` begins a comment. Pretraining
            leaves out the scenes of a test set by ``deny``.
    """

    bbox: tuple[float, float, float, float] | None = Field(default=None, strict=False)
    begin: Day | None = None
    end: Day | None = None
    max_cloud: Share | None = None
    max_nodata: Share | None = None
    split: Literal["train", "val", "test"] | None = None
    keep: str | None = None
    deny: str | None = None


class OrderConfig(ConfigModel):
    """How an epoch is ordered.

    ``global`` shuffles all units: every read is at a random place, right for NVMe, page cache and Lustre.
    ``windowed`` reads ``window`` shards at a time in shuffled order and shuffles inside them, right for
    object stores, disks and staging. ``sampling``: an epoch visits every tile, or every location with one
    of its timestamps.
    """

    shuffle: Literal["global", "windowed"] = "global"
    window: Annotated[int, Field(gt=0)] = 16
    sampling: Literal["tile", "location"] = "tile"
