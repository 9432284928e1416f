"""The registry of task heads, with their options. Heads themselves are imported when the first one is built."""

from typing import Annotated, Any, ClassVar, cast

from pydantic import Field

from shards.config import NamedConfig
from shards.config.fields import OpenShare, Positive
from shards.registry import Registry


class HeadConfig(NamedConfig):
    """Options of a head."""

    inputs: ClassVar[tuple[str, ...]] = ("map", "pooled")
    """Which features of the encoder it takes."""

    @property
    def label(self) -> str:
        """The name, with the options that differ from their defaults."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])


class MapHeadConfig(HeadConfig):
    """Options of a head on the feature map."""

    inputs = ("map",)


class MlpHeadConfig(HeadConfig):
    """Options of hidden layers on pooled features."""

    inputs = ("pooled",)
    hidden: Annotated[tuple[Positive, ...], Field(strict=False)] = (2048, 1024)
    """Widths of the hidden layers."""
    dropout: OpenShare = 0.2
    """Share of a hidden layer that training drops."""


HEADS: Registry[Any] = Registry("head", HeadConfig)
"""Builders of heads: called with a HeadConfig and a `finetune.heads.build.HeadShape`, they return a module."""

HEADS.add("conv", "finetune.heads.dense:build_conv", MapHeadConfig)
HEADS.add("fcn", "finetune.heads.dense:build_fcn", MapHeadConfig)
HEADS.add("linear", "finetune.heads.dense:build_linear")
HEADS.add("mlp", "finetune.heads.pooled:build_mlp", MlpHeadConfig)

HeadChoice = Annotated[HeadConfig, HEADS]
"""Config value: the name of a head, or a mapping with its name and options."""


def head_config(value: Any) -> HeadConfig:
    """Return the typed config of a head, from what a config or a saved model says."""
    return cast(HeadConfig, HEADS.validate(value))


def heads_for(features: str) -> list[str]:
    """Return the names of the heads that take these features, ``map`` or ``pooled``."""
    return [name for name, config in HEADS.configs.items() if features in config.inputs]  # type: ignore[attr-defined]
