"""Convert an encoder file: published weights and training checkpoints to one file that describes itself, and back.

`--to safetensors` (the default) writes the file that everything here reads; `--to flat` the published format, a
.pth that plain `torch.load` reads. Of a run's checkpoint, `--to torch` writes model and optimizer as one file for
`torch.load`, `--to dcp` everything as a folder of torch.distributed.checkpoint, and `--to checkpoint` makes such a
folder a checkpoint of the run again. Tensors are copied bit by bit.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pretrain.models.registry import ENCODERS
from pretrain.weights.description import EncoderDescription, WeightsError, with_sensor
from pretrain.weights.files import read_encoder, save_encoder
from pretrain.weights.hub import fetch
from pretrain.weights.training_state import read_training_state, save_checkpoint, save_dcp, save_training
from shards.cli import Parser, run_command
from shards.files.atomic import atomic_open


def convert(options: argparse.Namespace) -> None:
    """Read ``options.source``, print what of it was used, and write ``options.dest``.

    Raises:
        WeightsError: see ``load_encoder``; or statistics that don't fit, or options that a flat file can't hold.
    """
    if options.dest.exists() and not options.overwrite:
        raise WeightsError(f"{options.dest}: already exists; choose another name, or add --overwrite")
    if options.to in TRAININGS:
        return _convert_training(options)
    read = read_encoder(options.source, options.network, options.image_size, options.architecture)
    description = read.description
    if options.to == "flat" and (options.statistics or options.sensor):
        raise WeightsError("a flat file holds only weights: drop --statistics and --sensor, or --to flat")
    if options.sensor:
        description = with_sensor(description, options.sensor)
    if options.statistics:
        description = _with_statistics(description, options.statistics)
    print(f"{options.source}: {read.format}, {description.network} network, {_in_words(description)}")
    print(read.report.table())
    options.dest.parent.mkdir(parents=True, exist_ok=True)
    if options.to == "flat":
        save_flat(options.dest, read.weights)
    else:
        save_encoder(options.dest, read.weights, description)
        if not description.mu:
            print("normalization unknown: add it with --statistics FOLDER (with mu.npy and sigma.npy)")
    print(options.dest)


def _convert_training(options: argparse.Namespace) -> None:
    """Convert the whole state of a training, the encoder and all else."""
    for name in ("statistics", "sensor", "architecture", "image_size"):
        if getattr(options, name):
            raise WeightsError(f"--{name.replace('_', '-')} is of an encoder file: drop it, or --to {options.to}")
    if options.dest.is_dir():
        raise WeightsError(f"{options.dest}: a folder, which is not replaced: choose another name, or remove it")
    training = read_training_state(fetch(options.source))
    options.dest.parent.mkdir(parents=True, exist_ok=True)
    TRAININGS[options.to](options.dest, training)
    sizes = {kind: sum(map(Tensor.numel, tensors.values())) for kind, tensors in training.tensors.items()}
    print(f"{training.where}: step {training.state['step']}; " + ", ".join(f"{kind} {n}" for kind, n in sizes.items()))
    print(options.dest)


TRAININGS = {"torch": save_training, "dcp": save_dcp, "checkpoint": save_checkpoint}


def save_flat(path: Path, weights: dict[str, Tensor]) -> None:
    """Write weights as SpectralEarth publishes them: a pickled dict of tensors under flat names."""
    tensors = {name: _with_own_storage(tensor) for name, tensor in weights.items()}
    with atomic_open(path) as file:
        torch.save(tensors, file)


def _with_own_storage(tensor: Tensor) -> Tensor:
    """``torch.save`` writes the whole storage that a tensor is a part of."""
    owns_storage = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if owns_storage else tensor.clone(memory_format=torch.contiguous_format)


def _with_statistics(description: EncoderDescription, folder: Path) -> EncoderDescription:
    mu, sigma = (_read_band_values(folder / f"{name}.npy", description.bands) for name in ("mu", "sigma"))
    if min(sigma) <= 0:
        raise WeightsError(f"{folder / 'sigma.npy'}: a standard deviation is 0 or less; remove such bands")
    return replace(description, mu=mu, sigma=sigma)


def _read_band_values(path: Path, bands: int) -> list[float]:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        hint = "name the folder of shards, or of mu.npy and sigma.npy"
        raise WeightsError(f"{path}: missing or not an array; {hint}") from None
    if values.shape != (bands,) or not np.isfinite(values).all():
        raise WeightsError(
            f"{path}: shape {values.shape}, but ({bands},) finite numbers are needed, one per band; use the statistics "
            "of the sensor that the encoder was trained on"
        )
    return [float(value) for value in values]


def _in_words(description: EncoderDescription) -> str:
    sizes = f", image {description.image_size} px, patch {description.patch_size} px"
    return f"{description.architecture}{sizes if 'vit' in description.architecture else ''}"


def main(argv: list[str] | None = None) -> int:
    """Convert one file and return the exit code."""
    return run_command(build_parser(), argv)


def build_parser() -> Parser:
    """Return the parser of the command."""
    parser = Parser(prog="spectralforge-convert", description=__doc__)
    parser.add_argument(
        "source",
        help="encoder file, training checkpoint, folder of a run or of DCP, or URL (https://, hf://)",
    )
    parser.add_argument("dest", type=Path, help="file to write; a folder for --to dcp and checkpoint")
    parser.add_argument(
        "--to", choices=("safetensors", "flat", *TRAININGS), default="safetensors", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--architecture", choices=ENCODERS.names(), metavar="NAME", help="compare the weights with this model"
    )
    parser.add_argument(
        "--sensor", metavar="NAME", help="whose bands it was trained on (default: the file's, or enmap)"
    )
    parser.add_argument("--statistics", type=Path, metavar="FOLDER", help="shards, or a folder with mu.npy, sigma.npy")
    parser.add_argument("--network", choices=("student", "teacher"), default="auto", help="of checkpoints with both")
    parser.add_argument("--image-size", type=int, metavar="PX", help="interpolate position embeddings to this size")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.set_defaults(run=convert)
    return parser


if __name__ == "__main__":
    sys.exit(main())
