"""Limits on the quality of tiles cut from products."""

from typing import Annotated

from pydantic import Field

from shards.config import ConfigModel

Share = Annotated[float, Field(ge=0, le=1)]


class SceneLimits(ConfigModel):
    """Largest allowed share of a tile's pixels, None for no limit. ``nodata``: pixels with any kept band missing.

    The thresholds of SpectralEarth's tiles are not documented. HySpecNet-11k used products with less than 10 %
    clouds; here this limit applies to every tile.
    """

    cloud: Share | None = 0.1
    cloud_shadow: Share | None = None
    haze: Share | None = None
    cirrus: Share | None = None
    snow: Share | None = None
    nodata: Share | None = 0.1


NO_LIMITS = SceneLimits(cloud=None, nodata=None)
"""Limits that leave out no tile."""
