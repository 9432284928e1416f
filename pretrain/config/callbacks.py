"""The options of callbacks that a config adds to the training loop."""

from typing import Literal

from shards.config import NamedConfig
from shards.config.fields import Positive


class CallbackConfig(NamedConfig):
    """A callback without options; base of the configs of all callbacks."""


class ProfilerConfig(CallbackConfig):
    """A trace of some training steps by torch.profiler."""

    name: Literal["profiler"] = "profiler"
    """Name of the callback."""
    at: Positive = 100
    """First step of the trace."""
    steps: Positive = 3
    """Steps of the trace."""
