"""The registry of task heads, with their options. Heads themselves are imported when the first one is built."""

from typing import Annotated, Any, ClassVar, cast

from pydantic import Field

from shards.config import NamedConfig
from shards.config.fields import Choices, OpenShare, Positive
from shards.registry import Registry


class HeadConfig(NamedConfig):
    """Options of a head."""

    inputs: ClassVar[tuple[str, ...]] = ("map", "pooled")
    """Which features of the encoder it takes: ``map``, ``pooled`` and ``layers``, maps of several layers."""

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


class LayersHeadConfig(HeadConfig):
    """Options of a head on the maps of several layers."""

    inputs = ("layers",)
    layers: Choices[int] | None = None
    """Numbers of the layers, from 0 on, negative ones from the end; null for four evenly spaced ones."""


class DecoderConfig(LayersHeadConfig):
    """Options of a convolutional head on the maps of several layers."""

    hidden: Positive = 256
    """Channels of its convolutions."""


HEADS: Registry[Any] = Registry("head", HeadConfig)
"""Builders of heads: called with a HeadConfig and a `finetune.heads.build.HeadShape`, they return a module."""

HEADS.add("conv", "finetune.heads.dense:build_conv", MapHeadConfig)
HEADS.add("fcn", "finetune.heads.dense:build_fcn", MapHeadConfig)
HEADS.add("linear", "finetune.heads.dense:build_linear")
HEADS.add("fcn_layers", "finetune.heads.multilayer:build_fcn_layers", DecoderConfig)
HEADS.add("upernet", "finetune.heads.multilayer:build_upernet", DecoderConfig)
HEADS.add("mlp", "finetune.heads.pooled:build_mlp", MlpHeadConfig)

HeadChoice = Annotated[HeadConfig, HEADS]
"""Config value: the name of a head, or a mapping with its name and options."""


def head_config(value: Any) -> HeadConfig:
    """Return the typed config of a head, from what a config or a saved model says."""
    return cast(HeadConfig, HEADS.validate(value))


def heads_for(features: str) -> list[str]:
    """Return the names of the heads for tasks with these features: ``pooled``, or ``map``, where heads may take
    ``layers`` instead."""
    taken = {"map", "layers"} if features == "map" else {features}
    return [name for name, config in HEADS.configs.items() if taken & set(config.inputs)]  # type: ignore[attr-defined]
