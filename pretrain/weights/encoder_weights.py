"""All weights of an encoder together with its description."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pretrain.models.attention import Backend
from pretrain.models.encoder import Encoder
from pretrain.models.patches import fit_positions
from pretrain.models.registry import ENCODERS, build_encoder
from pretrain.weights.description import EncoderDescription, WeightsError
from pretrain.weights.finite import find_non_finite
from pretrain.weights.report import LoadReport
from shards.errors import ConfigError


@dataclass(frozen=True)
class EncoderWeights:
    """All weights of an encoder under the names of its state dict, in its order, with dtypes as in the file.

    Attributes:
        where: the file or checkpoint that they were read from, for messages.
        format: name of the format of that file.
        report: how the names in the file matched.
        is_described: whether the file itself says what its encoder was trained on; otherwise the sensor is a guess.
        heads: of our checkpoints, what was trained beside the encoder, under the names of the pretraining module.
    """

    where: str
    format: str
    weights: dict[str, Tensor]
    description: EncoderDescription
    report: LoadReport
    is_described: bool
    heads: dict[str, Tensor] = field(default_factory=dict)

    def resized(self, image_size: int) -> "EncoderWeights":
        """Return the weights for another image size in pixels: position embeddings are interpolated.

        Raises:
            WeightsError: the patch size does not divide the image size.
        """
        description, weights, report = replace(self.description, image_size=image_size), dict(self.weights), self.report
        for name, tensor in outline(description, self.where).state_dict().items():
            weights[name] = fit_positions(name, weights[name], tensor.shape)
            if weights[name] is not self.weights[name]:
                report = report.with_reshaped(name, self.weights[name], weights[name])
        return replace(self, weights=weights, description=description, report=report)


_UNFIT = (ConfigError, AttributeError, KeyError, TypeError, ValueError, RuntimeError, OverflowError)
"""Errors raised when building an encoder: for unknown names, options of another type, and sizes beyond any tensor's."""


def outline(
    description: EncoderDescription, where: str, bn_group: int | None = None, attention: Backend = "auto"
) -> Encoder:
    """Build the encoder that is described on the meta device; its contents would take time and up to 4.5 GB.

    Raises:
        WeightsError: an unknown architecture, or sizes that it can't have.
    """
    try:
        with torch.device("meta"):
            return build_encoder(
                description.architecture,
                description.image_size,
                description.patch_size,
                bn_group,
                attention,
                description.bands,
                description.dilation,
                **description.options,
            )
    except _UNFIT as error:
        raise WeightsError(f"{where}: {' '.join(str(error).split())}{_plugins_hint(description)}") from None


def _plugins_hint(description: EncoderDescription) -> str:
    """Name the plugins of the run that trained an encoder, where its architecture is unknown without them."""
    plugins = description.config.get("plugins") or []
    if not plugins or description.architecture in ENCODERS:
        return ""
    return f"; its run had plugins={plugins}: give them to load_encoder, or as --plugins {','.join(plugins)}"


def require_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raise WeightsError if a weight is NaN or infinite, since the features of such an encoder would be, too."""
    problem = find_non_finite(weights)
    if problem is not None:
        raise WeightsError(f"{where}: {problem}: the training diverged; use an earlier checkpoint")
