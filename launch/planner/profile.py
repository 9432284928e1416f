"""Measured rates of a device in a file, written by --calibrate and read by --profile."""

import json
from pathlib import Path

from launch.planner.step_time import PARTS, Rates
from shards.config import ConfigModel, check_config, parse_values
from shards.errors import ConfigError
from shards.files.atomic import write_atomic
from shards.files.text import read_text_file


class Profile(ConfigModel):
    """One measured device.

    Attributes:
        device: name of the device.
        precision: precision of the measured steps.
        model: model of the measured steps.
        flops: achieved FLOP/s by part: stem, encoder, decoder.
        optimizer: bytes/s of the update.
        fixed: overhead in seconds per micro batch that no operation accounts for.
    """

    device: str
    precision: str
    model: str
    flops: dict[str, float]
    optimizer: float
    fixed: float

    def rates(self, source: str) -> Rates:
        """Return the rates for the planner."""
        return Rates(self.flops, self.optimizer, self.fixed, f"measured on {self.device} ({source})")


def write_profile(path: Path, profile: Profile) -> None:
    """Write a profile atomically."""
    if not path.parent.is_dir():
        raise ConfigError(f"--calibrate {path}: no folder {path.parent}; create it first")
    write_atomic(path, json.dumps(profile.model_dump(), indent=1) + "\n")


def read_profile(path: Path, precision: str) -> Rates:
    """Read the rates of a profile.

    Raises:
        ConfigError: the file can't be read, is not a profile, or has another precision.
    """
    where = f"--profile {path}"
    try:
        values = parse_values(read_text_file(path, where), where, ".json")
        profile = check_config(values, Profile, where)
    except ConfigError as error:
        raise ConfigError(f"{error}; write a profile with --calibrate FILE") from None
    if not all(profile.flops.get(part, 0) > 0 for part in PARTS) or profile.optimizer <= 0:
        raise ConfigError(f"--profile {path}: it lacks positive rates for {', '.join(PARTS)} or the optimizer")
    if profile.precision != precision:
        raise ConfigError(
            f"--profile {path}: measured at precision {profile.precision}, but engine.precision is {precision}"
        )
    return profile.rates(str(path))
