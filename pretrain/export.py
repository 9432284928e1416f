"""From a checkpoint to an encoder file: reads the checkpoint's files alone, on any machine, without DeepSpeed."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pretrain.checkpoint import read_state, read_weights
from pretrain.models import EncoderDescription, save_encoder


def export_encoder(checkpoint: Path, dest: Path) -> None:
    """Write the encoder of a checkpoint as one safetensors file that describes itself."""
    state = read_state(checkpoint)
    model, data = state["config"]["model"], state["data"]
    description = EncoderDescription(
        architecture=model["name"],
        image_size=model["image_size"],
        patch_size=model["patch_size"],
        sensor=data["sensor"],
        wavelength_nm=data["wavelength_nm"],
        fwhm_nm=data["fwhm_nm"],
        mu=data["mu"],
        sigma=data["sigma"],
        objective=state["config"]["objective"]["name"],
        samples_seen=state["samples_seen"],
        dataset=data["content_hash"],
        version=code_version(),
    )
    save_encoder(dest, read_weights(checkpoint, "encoder"), description)


def code_version() -> str:
    """The installed version of the project, ``"unknown"`` in a bare checkout."""
    try:
        return version("spectralforge")
    except PackageNotFoundError:
        return "unknown"
