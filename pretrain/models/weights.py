"""Encoders out of files of any format and into ours, strictly: all of an encoder's weights, or an error."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pretrain.models.attention import Backend
from pretrain.models.containers import Network
from pretrain.models.description import EncoderDescription, WeightsError
from pretrain.models.encoder import Encoder
from pretrain.models.finite import find_non_finite
from pretrain.models.formats import StoredEncoder, read_stored
from pretrain.models.patches import resize_positions
from pretrain.models.recognise import recognise
from pretrain.models.registry import build_encoder
from pretrain.models.report import LoadReport, compare
from pretrain.models.resnet import NO_DILATION
from shards.atomic import write_atomic


@dataclass(frozen=True)
class EncoderWeights:
    """All weights of an encoder under flat names, in the published order, with dtypes as in the file.

    Attributes:
        layout: name of the format that they came from.
        report: how the file's names fitted.
    """

    weights: dict[str, Tensor]
    description: EncoderDescription
    layout: str
    report: LoadReport


def load_encoder(
    path: str | Path,
    bn_group: int | None = None,
    attention: Backend = "auto",
    *,
    image_size: int | None = None,
    dilate: Sequence[bool] = NO_DILATION,
    network: Network = "auto",
) -> tuple[Encoder, EncoderDescription]:
    """Rebuild the encoder of a file; nothing else is needed.

    Args:
        path: our export, a published file, a training checkpoint of the published code, or one of our
            checkpoints: its folder, or that of a run (the newest). docs/weights.md lists the formats.
        bn_group, attention, dilate: see ``build_encoder``.
        image_size: in pixels, other than the file's: position embeddings are interpolated to it.
        network: the trained one or its average, of checkpoints that have both; ``auto`` takes DINO's teacher.

    Returns:
        The encoder in evaluation mode on the CPU, fp32, and its description; where the file has none, one with
        unknown normalisation.

    Raises:
        WeightsError: the file is missing, damaged, of no known format, or doesn't match its architecture in full.
    """
    read = read_encoder(path, network, image_size)
    encoder = _shape_of(read.description, str(path), bn_group, attention, dilate)
    assert dict(encoder.named_buffers()).keys() <= encoder.state_dict().keys()  # else some would stay empty
    encoder.to_empty(device="cpu")
    load_strictly(encoder, read.weights, str(path))
    return encoder.eval(), read.description


def read_encoder(
    path: str | Path, network: Network = "auto", image_size: int | None = None, architecture: str | None = None
) -> EncoderWeights:
    """Read an encoder's weights and what is known of it, without building it.

    Args:
        network, image_size: see ``load_encoder``.
        architecture: name to hold the weights against; None takes the file's own, or the one they look like.

    Raises:
        WeightsError: see ``load_encoder``.
    """
    stored = read_stored(Path(path), network)
    description = _describe(stored, architecture)
    own = _shape_of(description, stored.where).state_dict()
    report = compare(own, stored.weights, stored.copies, stored.left_out)
    report.require_all(stored.where)
    weights = {name: stored.weights[name] for name in own}
    require_finite(weights, stored.where)
    if image_size is not None and image_size != description.image_size:
        description = replace(description, image_size=image_size)
        _shape_of(description, stored.where)  # refuses a size that the patches don't divide
        for name in [name for name in own if name.rsplit(".", 1)[-1] == "pos_embed"]:
            before, grid = weights[name], image_size // description.patch_size
            weights[name] = resize_positions(before, (grid, grid))
            report = report.with_reshaped(name, before, weights[name])
    return EncoderWeights(weights, description, stored.layout, report)


def save_encoder(path: Path, weights: dict[str, Tensor], description: EncoderDescription) -> None:
    """Write an encoder file in one step; raises WeightsError for weights that aren't finite."""
    require_finite(weights, str(path))
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_atomic(path, save(tensors, metadata=description.to_header()))


def require_finite(weights: dict[str, Tensor], where: str) -> None:
    """Raise WeightsError where a weight is NaN or infinite: such an encoder's features would be, too."""
    problem = find_non_finite(weights)
    if problem is not None:
        raise WeightsError(f"{where}: {problem}: the training diverged; take an earlier checkpoint")


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights that must match in every name and shape.

    Raises:
        WeightsError: one line that counts and names what is missing, unexpected or of another shape.
    """
    compare(model.state_dict(), weights).require_all(where)
    model.load_state_dict(weights)


def _describe(stored: StoredEncoder, architecture: str | None) -> EncoderDescription:
    """What the file says, or what its weights look like, under the architecture's name that was given."""
    described = stored.description
    if described is None:
        described = recognise(stored.weights, stored.objective, stored.network, stored.where)
    return described if architecture is None else replace(described, architecture=architecture)


def _shape_of(
    description: EncoderDescription,
    where: str,
    bn_group: int | None = None,
    attention: Backend = "auto",
    dilate: Sequence[bool] = NO_DILATION,
) -> Encoder:
    """The encoder on the meta device, without contents: the giant one's take 4.5 GB and time to draw.

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
                dilate,
            )
    except (ValueError, RuntimeError, OverflowError) as error:  # torch: sizes beyond what any tensor can have
        raise WeightsError(f"{where}: {' '.join(str(error).split())}") from None
