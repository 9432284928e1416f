"""Encoders out of files of any format and into ours, strictly: all of an encoder's weights, or an error."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from pretrain.models.attention import Backend
from pretrain.models.encoder import Encoder
from pretrain.models.patches import fit_positions
from pretrain.models.registry import build_encoder
from pretrain.weights.card import model_card
from pretrain.weights.description import EncoderDescription, WeightsError
from pretrain.weights.finite import find_non_finite
from pretrain.weights.formats import StoredEncoder, read_stored
from pretrain.weights.recognize import recognize
from pretrain.weights.report import LoadReport, compare
from pretrain.weights.torch_files import Network
from shards.errors import ConfigError
from shards.files.atomic import write_atomic

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class EncoderWeights:
    """All weights of an encoder under flat names, in the published order, with dtypes as in the file.

    Attributes:
        layout: name of the format that they came from.
        report: how the file's names fitted.
        described: whether the file itself says what its encoder was trained on; else the sensor is a guess.
        heads: of our checkpoints, what was trained beside the encoder, by the name that it has in the training.
    """

    weights: dict[str, Tensor]
    description: EncoderDescription
    layout: str
    report: LoadReport
    described: bool = False
    heads: dict[str, Tensor] = field(default_factory=dict)


def load_encoder(
    path: str | Path,
    bn_group: int | None = None,
    attention: Backend = "auto",
    *,
    image_size: int | None = None,
    dilate: Sequence[bool] | None = None,
    network: Network = "auto",
) -> tuple[Encoder, EncoderDescription]:
    """Rebuild the encoder of a file; nothing else is needed.

    Args:
        path: our export, a published file, a training checkpoint of the published code, or one of our
            checkpoints: its folder, or that of a run (the newest). docs/weights.md lists the formats.
        bn_group, attention, dilate: see ``build_encoder``; None takes the dilation that the file tells of.
        image_size: in pixels, other than the file's: position embeddings are interpolated to it.
        network: the trained one or its average, of checkpoints that have both; ``auto`` takes DINO's teacher.

    Returns:
        The encoder in evaluation mode on the CPU, fp32, and its description; where the file has none, one with
        unknown normalization.

    Raises:
        WeightsError: the file is missing, damaged, of no known format, or doesn't match its architecture in full.
    """
    read = read_encoder(path, network, image_size)
    description = read.description
    if dilate is not None:
        description = replace(description, dilation=list(dilate) if any(dilate) else [])
    encoder = _shape_of(description, str(path), bn_group, attention)
    assert dict(encoder.named_buffers()).keys() <= encoder.state_dict().keys()  # else some would stay empty
    encoder.to_empty(device="cpu")
    load_strictly(encoder, read.weights, str(path))
    return encoder.eval(), description


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
    report.require_all(stored.where, description.architecture)
    weights = {name: stored.weights[name] for name in own}
    require_finite(weights, stored.where)
    described = stored.description is not None
    read = EncoderWeights(weights, description, stored.layout, report, described, stored.heads)
    return read if image_size is None else resize_encoder(read, image_size, stored.where)


def resize_encoder(read: EncoderWeights, image_size: int, where: str) -> EncoderWeights:
    """The encoder for another image size, in pixels: position embeddings are interpolated.

    Raises:
        WeightsError: a size that its patches don't divide.
    """
    description, weights, report = replace(read.description, image_size=image_size), dict(read.weights), read.report
    for name, own in _shape_of(description, where).state_dict().items():
        weights[name] = fit_positions(name, weights[name], own.shape)
        if weights[name] is not read.weights[name]:
            report = report.with_reshaped(name, read.weights[name], weights[name])
    return replace(read, weights=weights, description=description, report=report)


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


def export_weights(dest: Path, weights: dict[str, Tensor], description: EncoderDescription) -> None:
    """Write an encoder file that `load_encoder` reads, and its model card beside it, ``.md``.

    Raises:
        WeightsError: the weights are not all of the encoder that is described.
        OSError: the files can't be written.
    """
    if dest.suffix != ".safetensors":
        raise WeightsError(f"{dest}: an encoder file is named *.safetensors; choose such a name")
    own = _shape_of(description, str(dest)).state_dict()
    compare(own, weights).require_all(str(dest), description.architecture)
    ordered = {name: weights[name].detach().cpu() for name in own}
    parameters = sum(tensor.numel() for name, tensor in ordered.items() if not name.endswith(_BUFFERS))
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(dest, ordered, description)
    write_atomic(dest.with_suffix(".md"), model_card(description, parameters, dest.name))


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights that must match in every name and shape.

    Raises:
        WeightsError: one line that counts and names what is missing, unexpected or of another shape.
    """
    compare(model.state_dict(), weights).require_all(where, type(model).__name__)
    model.load_state_dict(weights)


def _describe(stored: StoredEncoder, architecture: str | None) -> EncoderDescription:
    """What the file says, or what its weights look like, under the architecture's name that was given."""
    described = stored.description
    if described is None:
        described = recognize(stored.weights, stored.objective, stored.network, stored.where)
    return described if architecture is None else replace(described, architecture=architecture)


def _shape_of(
    description: EncoderDescription,
    where: str,
    bn_group: int | None = None,
    attention: Backend = "auto",
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
                description.dilation,
                **description.options,
            )
    except (
        ConfigError,
        AttributeError,
        KeyError,
        TypeError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:  # torch: sizes beyond what any tensor can have
        raise WeightsError(f"{where}: {' '.join(str(error).split())}") from None
