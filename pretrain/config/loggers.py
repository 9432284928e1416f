"""Loggers by name, with their options."""

from typing import Any

from shards.config import NamedConfig
from shards.registry import Registry


class LoggerConfig(NamedConfig):
    """Base of the configs of loggers."""


LOGGERS: Registry[Any] = Registry("logger", LoggerConfig)
LOGGERS.add("tensorboard", "pretrain.metrics.loggers.tensorboard:TensorBoard")
LOGGERS.add("jsonl", "pretrain.metrics.loggers.json_lines:JsonLines")

DEFAULT_LOGGERS = (LoggerConfig(name="tensorboard"), LoggerConfig(name="jsonl"))
