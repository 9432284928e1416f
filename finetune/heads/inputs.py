"""What heads get from the encoder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from finetune.heads.registry import HeadConfig, LayersHeadConfig
from finetune.tasks.kinds.kind import TaskKind
from pretrain.models.encoder import Encoder, Output, layer_numbers
from pretrain.models.layer_maps import LayerShape, folded_width, spaced_layers, unfold_layers


class FeatureShape(NamedTuple):
    """Shape of features.

    Attributes:
        features: D, channels.
        stride: pixels per side of a position of a map.
        layers: shapes of the maps that are folded into one (see `fold_layers`); empty for others.
    """

    features: int
    stride: int
    layers: tuple[LayerShape, ...] = ()


@dataclass(frozen=True)
class HeadInput:
    """Features of an encoder that a head gets.

    Attributes:
        output: output of the encoder's forward: ``map`` (B, D, g, g), ``pooled`` (B, D), ``layers``, the folded maps of
            several layers, or ``layer_means`` (B, D), the means of their positions.
        layers: numbers of the layers, ascending; empty for ``map`` and ``pooled``.
    """

    output: Output
    layers: tuple[int, ...] = ()

    def compute(self, encoder: Encoder, images: Tensor) -> Tensor:
        """Compute the features of normalized images (B, C, S, S)."""
        return encoder(images, self.output, self.layers) if self.layers else encoder(images, self.output)

    def shape(self, encoder: Encoder) -> FeatureShape:
        """Return the shape of the features."""
        if not self.layers:
            return FeatureShape(encoder.feature_dim, encoder.stride)
        known = encoder.layer_shapes()
        layers = tuple(known[number] for number in self.layers)
        if self.output == "layers":
            return FeatureShape(folded_width(layers), layers[-1].stride, layers)
        return FeatureShape(sum(layer.width for layer in layers), layers[-1].stride)

    def describe(self, split: str) -> str:
        """Return what messages call the features of a split."""
        numbers = ", ".join(map(str, self.layers))
        layers = f", layer{'s' * (len(self.layers) > 1)} {numbers}" if self.layers else ""
        return f"features of {split}{layers}"

    def to_plain(self) -> Any:
        """Return what identifies it: the output, or a list of the output and the numbers of the layers."""
        return [self.output, *self.layers] if self.layers else self.output


def compute_each(sources: Sequence[HeadInput], encoder: Encoder, images: Tensor) -> list[Tensor]:
    """Compute the features of one input, or of several single layers in one pass.

    Args:
        sources: several ones have the same output and a layer each.
        images: normalized (B, C, S, S).
    """
    if len(sources) == 1:
        return [sources[0].compute(encoder, images)]
    joint = HeadInput(sources[0].output, tuple(sorted(source.layers[0] for source in sources)))
    features, shapes = joint.compute(encoder, images), encoder.layer_shapes()
    layers = [shapes[number] for number in joint.layers]
    if joint.output == "layers":
        parts = unfold_layers(features, layers)
    else:
        parts = list(features.split([layer.width for layer in layers], 1))
    return [parts[joint.layers.index(source.layers[0])] for source in sources]


def input_of(config: HeadConfig | None, kind: TaskKind, encoder: Encoder) -> HeadInput:
    """Return what a head gets in a kind of task; None is any head on the map or on pooled features.

    Raises:
        ValueError: the head asks for a layer that the encoder doesn't have.
    """
    if config is None or kind.features in config.inputs:
        return HeadInput(kind.features)
    depth, chosen = len(encoder.layer_shapes()), config.layers if isinstance(config, LayersHeadConfig) else None
    numbers = spaced_layers(depth) if chosen is None else layer_numbers(chosen, depth)
    return HeadInput("layers", tuple(sorted(set(numbers))))


def input_of_layer(number: int, kind: TaskKind) -> HeadInput:
    """Return the features of a single layer: its map, or for tasks with a label for each tile, the map's mean."""
    return HeadInput("layers" if kind.is_dense else "layer_means", (number,))
