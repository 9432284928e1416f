"""`python -m finetune predict CHECKPOINT SCENE OUT.tif`: apply a model or encoder to a complete scene."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from shards.cli import name_list, positive, share_below_1
from shards.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from finetune.predict.scene_map import Summary

BATCH = {"cpu": 1, "cuda": 16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "checkpoint", help="fine-tuned model, or an encoder of any format (its features); a file or URL"
    )
    parser.add_argument(
        "scene", help="product, or a raster with wavelengths or the model's bands: path, URL or /vsizip/ name"
    )
    parser.add_argument("output", type=Path, metavar="OUT.tif", help="Cloud-Optimized GeoTIFF to write")
    parser.add_argument(
        "--overlap",
        type=share_below_1,
        default=0.5,
        metavar="SHARE",
        help="overlap of neighboring windows (default: %(default)s)",
    )
    parser.add_argument(
        "--bands",
        choices=("same", "resample", "native"),
        default="same",
        help="resample computes the model's bands from those of another sensor's scene; native gives the scene's own "
        "to an encoder by wavelength (default: %(default)s)",
    )
    parser.add_argument(
        "--mask-quality",
        type=name_list,
        default=(),
        metavar="LAYER,...",
        help="quality layers of a product whose flagged values are missing, e.g. cloud,cirrus",
    )
    parser.add_argument("--batch", type=positive, help="windows at once (default: 1 on a CPU, 16 on a GPU)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT.tif if it exists")


def run(arguments: argparse.Namespace) -> int:
    """Write the map, print a summary and return the exit code; raise ForgeError for errors that a user can fix."""
    _check_output(arguments.output, arguments.scene, arguments.overwrite)
    import torch  # takes seconds: imported after the quick checks

    from finetune.encoders.model_file import load_task_model
    from finetune.predict.scene_map import predict_scene

    device = _device(arguments.device)
    batch = arguments.batch or BATCH.get(device.type, 1)
    model = load_task_model(arguments.checkpoint)
    try:
        options = arguments.overlap, batch, device, arguments.mask_quality, arguments.bands
        summary = predict_scene(model, arguments.scene, arguments.output, *options)
    except torch.OutOfMemoryError:
        raise ConfigError(f"--batch {batch}: {device} has too little memory for it, try {max(1, batch // 2)}") from None
    _print_summary(summary, arguments.output)
    return 0


def _check_output(output: Path, scene: str, overwrite: bool) -> None:
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: no such folder to write {output.name} to")
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder: name a file in it, e.g. {output / 'map.tif'}")
    if not output.exists():
        return
    if not overwrite:
        raise ConfigError(f"{output}: already exists: give --overwrite to replace it")
    source = Path(scene)
    if source.exists() and (output.samefile(source) or output.resolve().is_relative_to(source.resolve())):
        raise ConfigError(f"{output}: belongs to the scene: name another file")


def _device(name: str | None) -> "torch.device":
    import torch

    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise ConfigError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def _print_summary(summary: "Summary", output: Path) -> None:
    pixels = summary.shape[0] * summary.shape[1]
    for name, count in sorted(summary.counts.items(), key=lambda item: -item[1]):
        if count:
            print(f"  {count / pixels:7.2%}  {name}")
    skipped = f" ({summary.skipped} more without data)" if summary.skipped else ""
    print(
        f"{summary.shape[0]} x {summary.shape[1]} px from {summary.windows} windows{skipped} "
        f"in {summary.seconds:.1f} s: {output}"
    )
