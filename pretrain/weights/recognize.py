"""Recognize the encoder of weights by their names and shapes; most published files don't describe themselves."""

import math
import re
from dataclasses import replace

from torch import Tensor

from pretrain.models.published import PLAIN_VITS, SPEC_VITS
from pretrain.models.registry import ENCODERS
from pretrain.weights.description import EncoderDescription, WeightsError, describe_foreign

_PUBLISHED_IMAGE, _PUBLISHED_PATCH = 128, 4
"""Pixels; also the nominal sizes of a ResNet, which takes any size."""


def recognize(weights: dict[str, Tensor], objective: str, network: str, where: str) -> EncoderDescription:
    """Return the description of weights with flat names; missing weights are tolerated.

    Args:
        objective, network: what is known about their training.

    Raises:
        WeightsError: not one of our encoders; the line says what was found.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    is_spectral = any(name.startswith("spectral_adapter.") for name in shapes)
    prefix = "vit_core." if is_spectral else ""
    image_size, patch_size = _PUBLISHED_IMAGE, _PUBLISHED_PATCH
    if any(re.match(rf"{prefix}blocks\.", name) for name in shapes):
        architecture = _vit(shapes, prefix, is_spectral, where)
        image_size, patch_size = _sizes(shapes, prefix, where)
        first = "patch_embed.proj.weight"
    elif any(re.match(r"(resnet\.)?layer\d\.", name) for name in shapes):
        architecture, first = ("spec_resnet50" if is_spectral else "resnet50"), "conv1.weight"
    else:
        raise WeightsError(
            f"{where}: unknown architecture: neither transformer blocks nor residual layers in it, only "
            f"{_first_parts(shapes)}; save the whole encoder"
        )
    bands = None if is_spectral else _bands(shapes, first, where)
    described = describe_foreign(architecture, image_size, patch_size, bands, objective, network)
    if any(name.startswith("spectral_adapter.embedding.") for name in shapes):
        return replace(described, config={"model": {"stem": {"name": "wave"}}})
    return described


def _vit(shapes: dict[str, tuple[int, ...]], prefix: str, is_spectral: bool, where: str) -> str:
    """Name of the transformer with these blocks."""
    depth = 1 + max(int(match[1]) for name in shapes if (match := re.match(rf"{prefix}blocks\.(\d+)\.", name)))
    hidden = _first(shapes, rf"{prefix}blocks\.\d+\.mlp\.fc1\.(weight|bias)$", 0)
    width = _first(shapes, rf"{prefix}(cls_token|pos_embed|norm\.weight|blocks\.\d+\.norm\d\.weight)$", -1)
    known = SPEC_VITS if is_spectral else PLAIN_VITS
    sizes = {"width": width, "depth": depth, "MLP width": hidden}
    nearest, differing = "", dict[str, int]()
    for name, size in known.items():
        in_file = {"width": size.width, "depth": size.depth, "MLP width": size.mlp_hidden}
        wrong = {what: value for what, value in in_file.items() if value != sizes[what]}
        if not wrong:
            return name
        if not nearest or len(wrong) < len(differing):
            nearest, differing = name, wrong
    kind = "Spec. ViT" if is_spectral else "plain ViT"
    raise WeightsError(
        f"{where}: unknown architecture: a {kind} of width {width}, depth {depth} and MLP width {hidden}; the nearest, "
        f"{nearest}, has {' and '.join(f'{what} {value}' for what, value in differing.items())}; "
        f"known are {', '.join(ENCODERS.names())}"
    )


def _sizes(shapes: dict[str, tuple[int, ...]], prefix: str, where: str) -> tuple[int, int]:
    """Image and patch size in pixels."""
    patch_size = _first(shapes, rf"{prefix}patch_embed\.proj\.weight$", -1) or _PUBLISHED_PATCH
    tokens = _first(shapes, rf"{prefix}pos_embed$", 1)
    if tokens is None:
        return _PUBLISHED_IMAGE, patch_size
    grid = math.isqrt(tokens - 1)
    if grid**2 != tokens - 1:
        raise WeightsError(
            f"{where}: {prefix}pos_embed has {tokens} positions: not a class token and a square of patches"
        )
    return grid * patch_size, patch_size


def _first_parts(shapes: dict[str, tuple[int, ...]]) -> str:
    """The first parts of the names, for messages."""
    return ", ".join(list(dict.fromkeys(name.split(".")[0] for name in shapes))[:3])


def _bands(shapes: dict[str, tuple[int, ...]], first: str, where: str) -> int:
    """Number of bands that the first layer of a plain encoder takes."""
    if len(shapes.get(first, ())) != 4:
        raise WeightsError(f"{where}: {first} is missing: a plain encoder's number of bands is read from it")
    return shapes[first][1]


def _first(shapes: dict[str, tuple[int, ...]], pattern: str, axis: int) -> int | None:
    """Size along an axis of the first weight whose name matches."""
    for name, shape in shapes.items():
        if re.match(pattern, name) and len(shape) > max(axis, 0):
            return shape[axis]
    return None
