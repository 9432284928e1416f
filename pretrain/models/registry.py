"""Encoders by name; the names and sizes are those of the published registry."""

from dataclasses import dataclass

from pretrain.models.attention import Backend
from pretrain.models.vit import SpecViT


@dataclass(frozen=True)
class ViTSize:
    """Width, depth, heads and MLP width of a transformer."""

    width: int
    depth: int
    heads: int
    mlp_hidden: int


ENCODERS = {
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


def build_encoder(
    name: str, image_size: int = 128, patch_size: int = 4, bn_group: int | None = None, attention: Backend = "auto"
) -> SpecViT:
    """An encoder with torch-default contents; see ``initialise`` and ``load_encoder`` for weights.

    Raises:
        ValueError: unknown name, or a patch size that does not divide the image.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoder '{name}': known are {', '.join(ENCODERS)}")
    size = ENCODERS[name]
    return SpecViT(
        image_size, patch_size, size.width, size.depth, size.heads, size.mlp_hidden, bn_group, backend=attention
    )
