"""Export the encoder of a checkpoint; only its files are read, so this works on any machine without DeepSpeed."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pretrain.weights.files import export_weights, read_encoder


def export_encoder(checkpoint: Path, dest: Path) -> None:
    """Write the encoder of a checkpoint as one safetensors file that describes itself, and its model card beside it.

    Of DINO's checkpoints the teacher is exported.

    Raises:
        WeightsError: the checkpoint is damaged or doesn't hold all of its encoder.
    """
    read = read_encoder(checkpoint)
    export_weights(dest, read.weights, replace(read.description, version=code_version()))


def code_version() -> str:
    """Return the installed version of the project; ``"unknown"`` where it is not installed."""
    try:
        return version("spectralforge")
    except PackageNotFoundError:
        return "unknown"
