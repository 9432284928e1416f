"""The options of loggers."""

from typing import Literal

from shards.config import NamedConfig
from shards.config.fields import Name, PathText


class LoggerConfig(NamedConfig):
    """A logger without options; base of the configs of all loggers."""


class WandbConfig(LoggerConfig):
    """Weights & Biases."""

    project: Name = "spectralforge"
    """Project of the run."""
    entity: Name | None = None
    """User or team of the project; null for the account's own."""
    run_name: Name | None = None
    """Name of the run; null for the name of the run folder."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` writes files for a later ``wandb sync``, on machines without a network."""


class MlflowConfig(LoggerConfig):
    """MLflow."""

    tracking_uri: PathText | None = None
    """Tracking server, or folder as a file:// URI; null for ``MLFLOW_TRACKING_URI``, and without it for ``mlflow/`` in
    the run folder."""
    experiment: Name = "spectralforge"
    """Experiment of the run."""
    run_name: Name | None = None
    """Name of the run; null for the name of the run folder."""


DEFAULT_LOGGERS = (LoggerConfig(name="tensorboard"), LoggerConfig(name="jsonl"))
