"""The encoder that a run trains."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import model_validator

from pretrain.registries import STEMS
from shards.config import NamedConfig
from shards.config.fields import Positive


class ModelConfig(NamedConfig):
    """The encoder. Encoders with options of their own extend this class."""

    is_vit: ClassVar[bool] = False
    """Whether the encoder is a transformer on patches, which MAE can mask."""

    image_size: Positive = 128
    """Side of the images that it is trained on, in pixels."""
    patch_size: Positive = 4
    """Side of a ViT's patch, in pixels."""
    bn_group: Positive = 8
    """Samples that share batch-norm statistics."""
    attention: Literal["auto", "xformers", "sdpa", "math"] = "auto"
    """Kernel of a ViT's attention; ``auto`` takes xformers on GPUs where its kernels load, else torch's."""
    stem: Annotated[NamedConfig, STEMS] | None = None
    """What turns spectra into the features of pixels: a name, or a section with a name and options; null takes the
    encoder's own."""

    @property
    def by_wavelength(self) -> bool:
        """Whether the encoder takes bands of any sensor."""
        return self.stem is not None and self.stem.name == "wave"


class ViTConfig(ModelConfig):
    """A vision transformer."""

    is_vit: ClassVar[bool] = True

    @model_validator(mode="after")
    def _patch_divides_image(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f".patch_size {self.patch_size} does not divide .image_size {self.image_size}")
        return self
