"""Sensors: band tables, bands found by wavelength, spectral response and resampling."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.sensors.sensor import NODATA as NODATA
    from shards.sensors.sensor import Sensor as Sensor
    from shards.sensors.sensor import get_sensor as get_sensor

__all__ = ["NODATA", "Sensor", "get_sensor"]


def __getattr__(name: str) -> Any:
    """Import the public names of this room when they are first asked for."""
    if name in __all__:
        from shards.sensors import sensor

        return getattr(sensor, name)
    raise AttributeError(f"module 'shards.sensors' has no attribute '{name}'")
