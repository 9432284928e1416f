"""Loggers by name, with their options."""

from shards.config import ConfigModel
from shards.registry import Registry


class LoggerConfig(ConfigModel):
    """A logger without options."""

    name: str


LOGGERS: Registry = Registry("logger")
LOGGERS.add("tensorboard", "pretrain.metrics.loggers.tensorboard:TensorBoard", LoggerConfig)
LOGGERS.add("jsonl", "pretrain.metrics.loggers.json_lines:JsonLines", LoggerConfig)

DEFAULT_LOGGERS = (LoggerConfig(name="tensorboard"), LoggerConfig(name="jsonl"))
