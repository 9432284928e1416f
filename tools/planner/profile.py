"""What a device was measured to achieve, as a file: made by --calibrate, taken by --profile."""

import json
from pathlib import Path

from pydantic import ValidationError

from shards.atomic import write_atomic
from shards.config import ConfigModel
from shards.errors import ConfigError
from tools.planner.step_time import EFFICIENCY, Rates


class Profile(ConfigModel):
    """One measured device.

    Attributes:
        device: its name.
        precision: of the measured steps.
        model: that they trained.
        flops: achieved FLOP/s by part: stem, encoder, decoder.
        optimizer: bytes/s of the update.
        fixed: seconds of a micro batch that no operation explains.
    """

    device: str
    precision: str
    model: str
    flops: dict[str, float]
    optimizer: float
    fixed: float

    def rates(self, source: str) -> Rates:
        """For the planner."""
        return Rates(self.flops, self.optimizer, None, self.fixed, f"measured on {self.device} ({source})")


def write_profile(path: Path, profile: Profile) -> None:
    """Write it whole or not at all."""
    if not path.parent.is_dir():
        raise ConfigError(f"--calibrate {path}: no folder {path.parent}; make it first")
    write_atomic(path, json.dumps(profile.model_dump(), indent=1) + "\n")


def read_profile(path: Path, precision: str) -> Rates:
    """The rates of a profile.

    Raises:
        ConfigError: it can't be read, is no profile, or is of another precision.
    """
    try:
        profile = Profile.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--profile {path}: can't read it: {error.strerror}") from None
    except (ValidationError, UnicodeDecodeError):
        raise ConfigError(f"--profile {path}: no profile; write one with --calibrate FILE") from None
    if not all(profile.flops.get(part, 0) > 0 for part in EFFICIENCY) or profile.optimizer <= 0:
        raise ConfigError(f"--profile {path}: it lacks a positive rate of {', '.join(EFFICIENCY)} or the optimizer")
    if profile.precision != precision:
        raise ConfigError(
            f"--profile {path}: measured at precision {profile.precision}, but engine.precision is {precision}"
        )
    return profile.rates(str(path))
