"""Encoders with distinct weights, and files that hold them."""

from pathlib import Path

import pytest
import torch

from pretrain.models.initialize import initialize
from pretrain.models.registry import build_encoder
from pretrain.weights.description import WeightsError
from pretrain.weights.files import load_encoder

SIZE = 16


def drawn_weights(name: str = "spec_vit_tiny", seed: int = 1, size: int = SIZE, **options) -> dict[str, torch.Tensor]:
    """Return the state dict of an encoder whose parameters and buffers depend on the seed."""
    encoder = build_encoder(name, size, **options)
    initialize(encoder, "test", seed)
    weights = encoder.state_dict()
    for leaf, tensor in weights.items():
        if leaf.endswith("num_batches_tracked"):
            tensor.fill_(2**40 + seed)  # not representable in float32
        if leaf.endswith("running_mean"):
            tensor += 0.25 * seed
    return weights


def save_torch(folder: Path, content: object) -> Path:
    """Save any object with ``torch.save``."""
    path = folder / "file.pth"
    torch.save(content, path)
    return path


def loading_error(path: Path, **options) -> str:
    """Return the error message of loading a file, which must start with the path."""
    with pytest.raises(WeightsError) as raised:
        load_encoder(path, **options)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    return text
