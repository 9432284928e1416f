"""Load encoders from files of any format, and write them, strictly: all of an encoder's weights, or an error.

The one path that every encoder takes from a file: `fetch` finds or downloads it, `read_raw_checkpoint` reads its
tensors, `find_encoder` picks the encoder's among them by their names (`EncoderWeights`), and `load_encoder` builds the
network. `PretrainedEncoder` wraps that for images of any kind.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save
from torch import Tensor, nn

from pretrain.models.attention import Backend
from pretrain.models.encoder import Encoder
from pretrain.models.wave import set_default_spectrum
from pretrain.weights.card import model_card
from pretrain.weights.description import EncoderDescription, WeightsError
from pretrain.weights.encoder_weights import EncoderWeights, outline, require_finite
from pretrain.weights.formats import find_encoder
from pretrain.weights.hub import fetch
from pretrain.weights.raw_checkpoint import read_raw_checkpoint
from pretrain.weights.report import compare
from pretrain.weights.torch_files import Network
from shards.files.atomic import write_atomic

_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def load_encoder(
    location: str | Path,
    bn_group: int | None = None,
    attention: Backend = "auto",
    *,
    image_size: int | None = None,
    dilate: Sequence[bool] | None = None,
    network: Network = "auto",
) -> tuple[Encoder, EncoderDescription]:
    """Rebuild the encoder of a file.

    Args:
        location: our export, a published file, a training checkpoint of the published code, or one of our
            checkpoints: its folder, or that of a run (the newest); or a URL (see `fetch`). docs/weights.md lists the
            formats.
        bn_group, attention, dilate: see ``build_encoder``; None takes the dilation in the file's description.
        image_size: in pixels, other than the file's: position embeddings are interpolated to it.
        network: the trained one or its average, of checkpoints that have both; ``auto`` takes DINO's teacher.

    Returns:
        The encoder in evaluation mode on the CPU, fp32, and its description; where the file has none, one with
        unknown normalization.

    Raises:
        WeightsError: the file is missing, damaged, of no known format, or doesn't match its architecture in full.
    """
    read = read_encoder(location, network, image_size)
    description = read.description
    if dilate is not None:
        description = replace(description, dilation=list(dilate) if any(dilate) else [])
    encoder = outline(description, str(location), bn_group, attention)
    assert dict(encoder.named_buffers()).keys() <= encoder.state_dict().keys()  # else some would stay empty
    encoder.to_empty(device="cpu")
    load_strictly(encoder, read.weights, str(location))
    if description.wavelength_nm:
        set_default_spectrum(encoder, description.wavelength_nm, description.fwhm_nm)
    return encoder.eval(), description


def read_encoder(
    location: str | Path, network: Network = "auto", image_size: int | None = None, architecture: str | None = None
) -> EncoderWeights:
    """Read the weights of an encoder and what is known about it, without building it.

    Args:
        location, network, image_size: see `load_encoder`.
        architecture: what to compare the weights with; None for the file's own, or what the weights look like.

    Raises:
        WeightsError: see `load_encoder`.
    """
    read = find_encoder(read_raw_checkpoint(fetch(location), network), network, architecture)
    return read if image_size is None else read.resized(image_size)


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights that must match in every name and shape.

    Raises:
        WeightsError: one line that counts and names what is missing, unexpected or of another shape.
    """
    compare(model.state_dict(), weights).require_all(where, type(model).__name__)
    model.load_state_dict(weights)


def save_encoder(path: Path, weights: dict[str, Tensor], description: EncoderDescription) -> None:
    """Write an encoder file atomically; raises WeightsError for weights that are not finite."""
    require_finite(weights, str(path))
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_atomic(path, save(tensors, metadata=description.to_header()))


def export_weights(dest: Path, weights: dict[str, Tensor], description: EncoderDescription) -> None:
    """Write an encoder file that `load_encoder` reads, and its model card beside it, ``.md``.

    Raises:
        WeightsError: the weights are not all of the encoder that is described.
        OSError: the files can't be written.
    """
    if dest.suffix != ".safetensors":
        raise WeightsError(f"{dest}: the name of an encoder file must end in .safetensors")
    expected = outline(description, str(dest)).state_dict()
    compare(expected, weights).require_all(str(dest), description.architecture)
    ordered = {name: weights[name].detach().cpu() for name in expected}
    parameters = sum(tensor.numel() for name, tensor in ordered.items() if not name.endswith(_BUFFERS))
    dest.parent.mkdir(parents=True, exist_ok=True)
    save_encoder(dest, ordered, description)
    write_atomic(dest.with_suffix(".md"), model_card(description, parameters, dest.name))
