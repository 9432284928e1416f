"""The published encoders (SpectralEarth, arXiv 2408.08447) by name: builders that the registry refers to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pretrain.models.attention import Backend
from pretrain.models.registry import build_stem
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


def spec_vit(
    *,
    name: str,
    bands: int,
    image_size: int,
    patch_size: int,
    bn_group: int | None,
    attention: Backend,
    stem: Mapping[str, Any] | None = None,
    **_: Any,
) -> SpecViT:
    """Build a Spec. ViT of a published size, by default with the published spectral adapter."""
    size = SPEC_VITS[name]
    built = build_stem(stem, "spectral_adapter", bands, bn_group)
    return SpecViT(
        image_size, patch_size, size.width, size.depth, size.heads, size.mlp_hidden, backend=attention, stem=built
    )


def plain_vit(
    *,
    name: str,
    bands: int,
    image_size: int,
    patch_size: int,
    attention: Backend,
    stem: Mapping[str, Any] | None = None,
    **_: Any,
) -> PlainViT:
    """Build a ViT of a published size on the bands themselves."""
    _require_no_stem(name, stem)
    size = PLAIN_VITS[name]
    return PlainViT(bands, image_size, patch_size, size.width, size.depth, size.heads, size.mlp_hidden, attention)


def spec_resnet50(
    *,
    bands: int,
    bn_group: int | None,
    dilate: Sequence[bool],
    stem: Mapping[str, Any] | None = None,
    **_: Any,
) -> SpecResNet:
    """Build Spec. ResNet-50, by default with the published spectral adapter."""
    return SpecResNet(dilate or NO_DILATION, bn_group, build_stem(stem, "spectral_adapter", bands, bn_group))


def resnet50(
    *, name: str, bands: int, bn_group: int | None, stem: Mapping[str, Any] | None = None, **_: Any
) -> PlainResNet:
    """Build ResNet-50 on the bands themselves."""
    _require_no_stem(name, stem)
    return PlainResNet(bands, bn_group)


def _require_no_stem(name: str, stem: Mapping[str, Any] | None) -> None:
    if stem is not None and stem["name"] != "none":
        raise ValueError(
            f"{name} takes the bands directly, without a stem '{stem['name']}': use a spec_ encoder for that"
        )
