"""Encoders as files: safetensors with published parameter names and a description of themselves in the header."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pretrain.models.attention import Backend
from pretrain.models.encoder import Encoder
from pretrain.models.normalise import Normaliser
from pretrain.models.registry import build_encoder
from shards.atomic import write_atomic
from shards.errors import ForgeError


class WeightsError(ForgeError):
    """An encoder file that is missing, damaged, or of another model."""


@dataclass(frozen=True)
class EncoderDescription:
    """What is needed to use an encoder, kept in its file.

    Attributes:
        architecture, image_size, patch_size: arguments of ``build_encoder``.
        sensor, wavelength_nm, fwhm_nm: the bands it was trained on, in order.
        mu, sigma: per-band normalisation of digital numbers.
        objective, samples_seen, dataset: how it was trained; the dataset by content hash.
        version: of the code that wrote the file.
    """

    architecture: str
    image_size: int
    patch_size: int
    sensor: str
    wavelength_nm: list[float]
    fwhm_nm: list[float]
    mu: list[float]
    sigma: list[float]
    objective: str
    samples_seen: int
    dataset: str
    version: str


_KEY = "spectralforge"


def save_encoder(path: Path, weights: dict[str, Tensor], description: EncoderDescription) -> None:
    """Write an encoder file in one step."""
    tensors = {name: tensor.contiguous() for name, tensor in weights.items()}
    write_atomic(path, save(tensors, metadata={_KEY: json.dumps(asdict(description))}))


def load_encoder(
    path: str | Path, bn_group: int | None = None, attention: Backend = "auto"
) -> tuple[Encoder, EncoderDescription]:
    """Rebuild an exported encoder; nothing but its file is needed.

    Returns:
        The encoder in evaluation mode on the CPU, and its description.

    Raises:
        WeightsError: the file is missing, damaged, undescribed, or doesn't match its architecture in full.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such encoder file") from None
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: not a whole safetensors file ({error})") from None
    description = _description(path, metadata)
    try:
        encoder = build_encoder(
            description.architecture, description.image_size, description.patch_size, bn_group, attention
        )
    except ValueError as error:
        raise WeightsError(f"{path}: {error}") from None
    load_strictly(encoder, weights, str(path))
    return encoder.eval(), description


def encode(encoder: Encoder, description: EncoderDescription, tiles: np.ndarray | Tensor) -> Tensor:
    """Class-token features (B, D) float32 of int16 tiles (B, C, H, W), on the encoder's device.

    Raises:
        WeightsError: the tiles have another band count or size than the encoder.
    """
    device = next(encoder.parameters()).device
    values = torch.as_tensor(tiles).to(device)
    expected = (len(description.wavelength_nm), description.image_size, description.image_size)
    if values.dim() != 4 or tuple(values.shape[1:]) != expected:
        raise WeightsError(
            f"tiles of shape {tuple(values.shape)}: this encoder takes (B, {', '.join(map(str, expected))})"
        )
    normalise = Normaliser(description.mu, description.sigma).to(device)
    with torch.no_grad():
        return encoder(normalise(values)).float()


def load_strictly(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Load weights that must match in every name and shape.

    Raises:
        WeightsError: one line that counts and names what is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    reshaped = sorted(name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape)
    problems = [
        f"{len(names)} {what} (e.g. {names[0]}{_shapes(own, weights, names[0]) if what == 'of another shape' else ''})"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", reshaped))
        if names
    ]
    if problems:
        matched = len(own) - len(missing) - len(reshaped)
        raise WeightsError(f"{where}: weights of another model: {matched} of {len(own)} match, {', '.join(problems)}")
    model.load_state_dict(weights)


def _shapes(own: dict[str, Tensor], weights: dict[str, Tensor], name: str) -> str:
    return f": {tuple(weights[name].shape)} instead of {tuple(own[name].shape)}"


def _description(path: Path, metadata: dict[str, str]) -> EncoderDescription:
    if _KEY not in metadata:
        raise WeightsError(f"{path}: no description in its header: not an encoder exported by this project")
    try:
        values = json.loads(metadata[_KEY])
        return EncoderDescription(**{field.name: values[field.name] for field in fields(EncoderDescription)})
    except (ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path}: its description is damaged ({error})") from None
