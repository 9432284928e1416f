"""Encoders by name; the names and sizes are those of the published registry."""

from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.models import adapter
from pretrain.models.attention import Backend
from pretrain.models.encoder import Encoder
from pretrain.models.resnet import NO_DILATION, PlainResNet, SpecResNet
from pretrain.models.vit import PlainViT, SpecViT


@dataclass(frozen=True)
class ViTSize:
    """Width, depth, heads and MLP width of a transformer."""

    width: int
    depth: int
    heads: int
    mlp_hidden: int


SPEC_VITS = {
    "spec_vit_tiny": ViTSize(192, 12, 3, 768),
    "spec_vit_small": ViTSize(384, 12, 6, 1536),
    "spec_vit_base": ViTSize(768, 12, 12, 3072),
    "spec_vit_large": ViTSize(1024, 24, 16, 4096),
    "spec_vit_huge": ViTSize(1280, 32, 16, 5120),
    "spec_vit_giant": ViTSize(1536, 40, 24, 6144),
    "spec_vit_gigantic": ViTSize(1664, 48, 16, 8192),
}
"""Tiny to giant are the published ones; the published giant has 1.14 billion parameters, the 1.84 billion of
gigantic are what its model card says."""

PLAIN_VITS = {"vit_tiny": SPEC_VITS["spec_vit_tiny"], "vit_small": SPEC_VITS["spec_vit_small"]}
"""The same transformers on the bands themselves, for comparison."""

ENCODERS = (*SPEC_VITS, "spec_resnet50", *PLAIN_VITS, "resnet50")
"""All names."""


def fewest_bands(name: str) -> int:
    """The fewest bands that an encoder takes: the spectral adapter's convolutions need a spectrum of some length."""
    return adapter.fewest_bands() if name.startswith("spec_") else 1


def too_few_bands(name: str, bands: int) -> str:
    """Why an encoder doesn't take so few bands, and which one does."""
    plain = "resnet50" if name == "spec_resnet50" else " or ".join(PLAIN_VITS)
    return (
        f"{name} takes {fewest_bands(name)} bands or more, not {bands}: its published spectral adapter leaves nothing "
        f"of a shorter spectrum; take {plain}, without an adapter and for any number of bands"
    )


def build_encoder(
    name: str,
    image_size: int = 128,
    patch_size: int = 4,
    bn_group: int | None = None,
    attention: Backend = "auto",
    bands: int = 202,
    dilate: Sequence[bool] = NO_DILATION,
) -> Encoder:
    """An encoder with torch-default contents; see ``initialize`` and ``load_encoder`` for weights.

    Args:
        name: one of ENCODERS.
        image_size, patch_size, attention: of ViTs.
        bn_group: samples that share batch-norm statistics.
        bands: of plain encoders; Spec. ones take any number.
        dilate: for each layer of Spec. ResNet-50, whether a dilation takes the place of its stride.

    Raises:
        ValueError: unknown name, a patch size that does not divide the image, or fewer bands than it takes.
    """
    if bands and bands < fewest_bands(name):
        raise ValueError(too_few_bands(name, bands))
    if name in SPEC_VITS:
        size = SPEC_VITS[name]
        return SpecViT(image_size, patch_size, size.width, size.depth, size.heads, size.mlp_hidden, bn_group, attention)
    if name in PLAIN_VITS:
        size = PLAIN_VITS[name]
        return PlainViT(bands, image_size, patch_size, size.width, size.depth, size.heads, size.mlp_hidden, attention)
    if name == "spec_resnet50":
        return SpecResNet(dilate, bn_group)
    if name == "resnet50":
        return PlainResNet(bands, bn_group)
    raise ValueError(f"unknown encoder '{name}': known are {', '.join(ENCODERS)}")
