"""Encoders as backbones of terratorch; importing this module registers the backbone ``spectralforge``.

>>> import pretrain.weights.terratorch_backbone
>>> from terratorch.tasks import SemanticSegmentationTask
>>> model = {
...     "backbone": "spectralforge",
...     "backbone_location": "runs/a/encoder.safetensors",
...     "decoder": "FCNDecoder",
...     "num_classes": 5,
... }
>>> task = SemanticSegmentationTask(model, model_factory="EncoderDecoderFactory", loss="ce", ignore_index=-1)

Images are what `PretrainedEncoder` takes: digital numbers or reflectance in the encoder's bands. It normalizes them
itself, so the data module must not. Needs the extra ``terratorch``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import Tensor, nn

from pretrain.weights.pretrained import PretrainedEncoder, load_pretrained


class Backbone(nn.Module):
    """Images in, the feature maps of some layers out, as terratorch's decoders take them.

    Args:
        encoder: computes the features; trained on with the decoder, unless the task freezes its backbone.
        layers: numbers of the layers to return, negative ones from the end.

    Attributes:
        out_channels: channels of each returned map.
    """

    def __init__(self, encoder: PretrainedEncoder, layers: Sequence[int] = (-1,)) -> None:
        super().__init__()
        self.encoder, self.layers = encoder, tuple(layers)
        size = encoder.description.image_size
        with torch.no_grad():
            maps = self(torch.zeros(1, encoder.description.bands, size, size, dtype=torch.int16))
        self.out_channels = [feature_map.shape[1] for feature_map in maps]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return one map (B, D, h, w) for each layer of images (B, C, H, W)."""
        values = self.encoder.normalized(images)
        return list(self.encoder.encoder.get_intermediate_layers(values, self.layers, reshape=True, norm=True))


@TERRATORCH_BACKBONE_REGISTRY.register
def spectralforge(location: str | Path, layers: Sequence[int] = (-1,), **options: Any) -> Backbone:
    """Build the backbone ``spectralforge`` from an encoder's file, run or URL.

    Args:
        location: see `load_encoder`.
        layers: see `Backbone`.
        options: those of `load_encoder`, such as ``image_size``.
    """
    return Backbone(load_pretrained(location, **options), layers)
