"""The encoder that a run trains."""

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, model_validator

from pretrain.models.registry import STEMS
from shards.config import ConfigModel
from shards.config.fields import Positive


def _as_section(value: Any) -> Any:
    """Turn a name alone into the section with that name and no options."""
    return {"name": value} if isinstance(value, str) else value


if TYPE_CHECKING:
    StemConfig = ConfigModel
else:
    StemConfig = Annotated[STEMS.union(), BeforeValidator(_as_section)]


class ModelConfig(ConfigModel):
    """Base of every encoder's config.

    ``image_size`` and ``patch_size`` in pixels; ``bn_group``: samples that share batch statistics; ``attention``:
    kernel of transformers. ``stem``: what turns spectra into the features of pixels; null for the encoder's own.
    """

    is_vit: ClassVar[bool] = False

    name: str
    image_size: Positive = 128
    patch_size: Positive = 4
    bn_group: Positive = 8
    attention: Literal["auto", "xformers", "sdpa", "math"] = "auto"
    stem: StemConfig | None = None


class ViTConfig(ModelConfig):
    """A vision transformer, whose patches divide its images."""

    is_vit: ClassVar[bool] = True

    @model_validator(mode="after")
    def _patch_divides_image(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f".patch_size {self.patch_size} does not divide .image_size {self.image_size}")
        return self
