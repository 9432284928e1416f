"""A fine-tuned model in one self-contained file: encoder, head, task and normalization."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from finetune.encoders.images import ImageInput
from finetune.heads.build import build_head
from finetune.heads.inputs import HeadInput, input_of
from finetune.heads.registry import HeadChoice, HeadConfig, head_config
from finetune.tasks import Task
from finetune.tasks.kinds.kind import kind_of
from pretrain.models.encoder import Encoder
from pretrain.models.registry import build_encoder
from pretrain.models.wave import set_default_spectrum
from pretrain.weights.description import EncoderDescription, WeightsError, read_header
from pretrain.weights.encoder_weights import require_finite
from pretrain.weights.files import load_encoder
from pretrain.weights.hub import fetch
from shards.files.atomic import write_atomic
from shards.files.untrusted import read_json_value
from shards.format.manifest import first_problem

HEADER_KEY = "spectralforge-task"


@dataclass(frozen=True)
class InputDescription:
    """How tiles are converted to the encoder's input; see ImageInput.

    Attributes:
        response: nested list; None without resampling.
        made_bands: centers and widths in nm of the bands that ``response`` makes; None for those of the encoder.
    """

    sensor: str
    wavelength_nm: list[float]
    fwhm_nm: list[float]
    mu: list[float]
    sigma: list[float]
    clip: float | None
    response: list[list[float]] | None = None
    made_bands: tuple[list[float], list[float]] | None = None

    def build(self) -> ImageInput:
        response = None if self.response is None else np.asarray(self.response)
        return ImageInput(self.mu, self.sigma, self.clip, response)


@dataclass(frozen=True)
class _Saved:
    """The task's part of a model's header."""

    task: Task
    head: HeadChoice
    inputs: InputDescription
    dilate: tuple[bool, bool, bool, bool]


_CHECKED = TypeAdapter(_Saved)


class TaskModel(nn.Module):
    """A model from digital numbers to predictions.

    Attributes:
        encoder, description: the encoder, and its description from the file.
        head, head_config, task: None for a bare encoder, whose output is its feature map.
        inputs: bands of the tiles and their normalization.
        dilate: dilation of a ResNet encoder.
    """

    def __init__(
        self,
        encoder: Encoder,
        description: EncoderDescription,
        inputs: InputDescription,
        head_choice: HeadConfig | str | None = None,
        head: nn.Module | None = None,
        task: Task | None = None,
        dilate: tuple[bool, ...] = (False,) * 4,
    ) -> None:
        super().__init__()
        self.encoder, self.description, self.inputs = encoder, description, inputs
        self.head, self.task, self.dilate = head, task, dilate
        self.head_config = head_config(head_choice) if head_choice else None
        self.images = inputs.build()
        if self.bands is not None:
            set_default_spectrum(encoder, *self.bands)

    @property
    def bands(self) -> tuple[list[float], list[float]] | None:
        """Centers and widths in nm of the bands that an encoder by wavelength gets; None for other encoders."""
        if not self.encoder.by_wavelength:
            return None
        known = self.inputs if self.inputs.response is None else self.description
        return self.inputs.made_bands or (known.wavelength_nm, known.fwhm_nm)

    @property
    def head_input(self) -> HeadInput:
        """Features of the encoder that the head gets."""
        assert self.task is not None
        return input_of(self.head_config, kind_of(self.task), self.encoder)

    def scores(self, tiles: Tensor) -> Tensor:
        """Compute scores from digital numbers (B, bands, S, S): (B, K, S, S) if every pixel has a label, else (B, K);
        without a head, the feature map (B, D, S / stride, S / stride)."""
        images = self.images(tiles)
        if self.task is None or self.head is None:
            return self.encoder.dense_features(images).float()
        return self.head(self.head_input.compute(self.encoder, images)).float()

    def forward(self, tiles: Tensor) -> Tensor:
        """Compute predictions of the shape of the labels, see `TaskKind.predict`; features without a head."""
        scores = self.scores(tiles)
        return scores if self.task is None else kind_of(self.task).predict(scores)


def save_task_model(path: Path, model: TaskModel, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model's file atomically.

    Args:
        weights: weights of encoder and head by name, if the model itself doesn't hold them (ZeRO-3).
    """
    assert model.task is not None and model.head_config is not None
    metadata: dict[str, Any] = {
        "task": model.task.model_dump(mode="json", exclude_defaults=True),
        "head": model.head_config.to_plain(),
        "inputs": asdict(model.inputs),
        "dilate": list(model.dilate),
    }
    header = model.description.to_header() | {HEADER_KEY: json.dumps(metadata)}
    tensors = weights or {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("images.")}
    require_finite(tensors, str(path))
    write_atomic(
        path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata=header)
    )


def load_task_model(path: str | Path) -> TaskModel:
    """Load a fine-tuned model, or an encoder of any format that `load_encoder` reads, in evaluation mode on the CPU.

    Raises:
        WeightsError: the file is missing, damaged or not finite, or the encoder's normalization is unknown.
    """
    path = fetch(path)
    metadata = _header(path)
    if metadata is None:
        return _bare_encoder(path)
    try:
        with safe_open(path, framework="pt") as file:
            description = read_header(file.metadata(), str(path))
            weights = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: damaged model file ({error})") from None
    if description is None:
        raise WeightsError(f"{path}: its description is damaged (it doesn't describe the encoder); train it again")
    require_finite(weights, str(path))
    try:
        return _rebuild(metadata, description, weights).eval()
    except ValidationError as error:  # raised by the header
        raise WeightsError(
            f"{path}: its description is damaged, or names something that a plugin adds: give --plugins "
            f"({first_problem(error)})"
        ) from None
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        what = str(error).splitlines()[0]
        raise WeightsError(f"{path}: its description is damaged or doesn't fit its weights ({what})") from None


def _rebuild(metadata: dict[str, Any], description: EncoderDescription, weights: dict[str, Tensor]) -> TaskModel:
    """Build the model that a header describes, with these weights; a mismatch raises any error."""
    saved = _CHECKED.validate_json(json.dumps(metadata))
    inputs, bands = saved.inputs, len(saved.inputs.wavelength_nm)
    if not len(inputs.mu) == len(inputs.sigma) == (bands if inputs.response is None else len(inputs.response)):
        raise ValueError("mu and sigma don't match its bands")
    with torch.device("meta"):  # the header may claim any size: allocate nothing before the weights match it
        encoder = build_encoder(
            description.architecture,
            description.image_size,
            description.patch_size,
            bands=description.bands,
            dilate=saved.dilate,
            **description.options,
        )
        kind = kind_of(saved.task)
        features, stride, layers = input_of(saved.head, kind, encoder).shape(encoder)
        head = build_head(saved.head, kind, features, stride, layers=layers)
    for name, module in (("encoder", encoder), ("head", head)):
        for key, tensor in module.state_dict().items():
            if weights[f"{name}.{key}"].shape != tensor.shape:
                raise ValueError(f"{name}.{key} has the wrong shape")
        module.to_empty(device="cpu")
    model = TaskModel(encoder, description, inputs, saved.head, head, saved.task, saved.dilate)
    model.load_state_dict(weights)
    return model


def _header(path: Path) -> dict[str, Any] | None:
    """Return the task's part of a safetensors header; None for any other file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(HEADER_KEY)
    except SafetensorError:
        return None
    try:
        return None if text is None else read_json_value(text)
    except ValueError as error:
        raise WeightsError(f"{path}: its description is damaged ({error}); copy or train it again") from None


def _bare_encoder(path: Path) -> TaskModel:
    encoder, description = load_encoder(path)
    if not description.mu:
        raise WeightsError(
            f"{path}: doesn't say how its images were normalized: spectralforge-convert FILE encoder.safetensors "
            "--statistics FOLDER adds it"
        )
    inputs = InputDescription(
        description.sensor,
        description.wavelength_nm,
        description.fwhm_nm,
        description.mu,
        description.sigma,
        description.clip,
    )
    return TaskModel(encoder, description, inputs).eval()
