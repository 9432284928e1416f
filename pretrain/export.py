"""From a checkpoint to an encoder file: reads the checkpoint's files alone, on any machine, without DeepSpeed."""

from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pretrain.models import save_encoder
from pretrain.models.card import model_card
from pretrain.models.weights import read_encoder
from shards.atomic import write_atomic


def export_encoder(checkpoint: Path, dest: Path) -> None:
    """Write the encoder of a checkpoint as one safetensors file that describes itself, and its model card beside it.

    Of DINO's checkpoints the teacher is exported.

    Raises:
        WeightsError: the checkpoint is damaged or doesn't hold all of its encoder.
    """
    read = read_encoder(checkpoint)
    description = replace(read.description, version=code_version())
    save_encoder(dest, read.weights, description)
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(tensor.numel() for name, tensor in read.weights.items() if not name.endswith(buffers))
    write_atomic(dest.with_suffix(".md"), model_card(description, parameters, dest.name))


def code_version() -> str:
    """The installed version of the project, ``"unknown"`` in a bare checkout."""
    try:
        return version("spectralforge")
    except PackageNotFoundError:
        return "unknown"
