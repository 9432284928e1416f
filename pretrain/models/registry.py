"""Encoders and stems, built by name; see pretrain/registries.py for the names."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pretrain.registries import ENCODERS as ENCODERS
from pretrain.registries import STEMS as STEMS

if TYPE_CHECKING:
    from pretrain.models.encoder import Encoder
    from pretrain.models.stem import Stem


def build_encoder(
    name: str,
    image_size: int = 128,
    patch_size: int = 4,
    bn_group: int | None = None,
    attention: str = "auto",
    bands: int = 202,
    dilate: Sequence[bool] = (),
    **options: Any,
) -> "Encoder":
    """Build an encoder with torch-default contents; see ``initialize`` and ``load_encoder`` for weights.

    Args:
        name: one of ENCODERS.
        image_size, patch_size: in pixels.
        bn_group: samples that share batch-norm statistics; None for all of a batch.
        attention: kernel of transformers (see ``attention``).
        bands: C; 0 where it isn't known and the encoder takes any number.
        dilate: of a ResNet: for each layer, whether a dilation takes the place of its stride; empty for none.
        options: other fields of the encoder's config.

    Raises:
        ConfigError: no encoder has this name.
        ValueError: sizes that don't fit, such as a patch size that does not divide the image, or too few bands.
    """
    sizes = {"image_size": image_size, "patch_size": patch_size, "bn_group": bn_group, "dilate": dilate}
    encoder = ENCODERS[name](name=name, bands=bands, attention=attention, **sizes, **options)
    if 0 < bands < encoder.min_bands:
        raise ValueError(
            f"{name} needs at least {encoder.min_bands} bands, not {bands}: its stem needs a longer spectrum; use "
            "vit_tiny, vit_small or resnet50, which have no stem"
        )
    return encoder


def outline_encoder(name: str, **options: Any) -> "Encoder":
    """Build an encoder on the meta device: without weights, to ask for its sizes and needs."""
    import torch

    with torch.device("meta"):
        return build_encoder(name, **options)


def build_stem(stem: Mapping[str, Any] | None, default: str, bands: int, bn_group: int | None) -> "Stem":
    """Build the stem of an encoder.

    Args:
        stem: its ``name`` and options; None for ``default``.
    """
    options = {"name": default} if stem is None else dict(stem)
    return STEMS[options.pop("name")](bands=bands, bn_group=bn_group, **options)
