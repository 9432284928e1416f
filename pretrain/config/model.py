"""The encoder that a run trains."""

from typing import Literal, Self

from pydantic import model_validator

from shards.config import ConfigModel
from shards.config.fields import Positive


class ModelConfig(ConfigModel):
    """The encoder. ``image_size`` and ``patch_size`` in pixels; ``bn_group``: samples that share batch statistics."""

    name: Literal[
        "spec_vit_tiny",
        "spec_vit_small",
        "spec_vit_base",
        "spec_vit_large",
        "spec_vit_huge",
        "spec_vit_giant",
        "spec_vit_gigantic",
        "spec_resnet50",
        "vit_tiny",
        "vit_small",
        "resnet50",
    ] = "spec_vit_small"
    image_size: Positive = 128
    patch_size: Positive = 4
    bn_group: Positive = 8
    attention: Literal["auto", "xformers", "sdpa", "math"] = "auto"

    @property
    def is_vit(self) -> bool:
        return "vit" in self.name

    @model_validator(mode="after")
    def _patch_divides_image(self) -> Self:
        if self.is_vit and self.image_size % self.patch_size:
            raise ValueError(f".patch_size {self.patch_size} does not divide .image_size {self.image_size}")
        return self
