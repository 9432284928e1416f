"""What a run minimizes: masked autoencoding, MoCo or DINO."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel
from shards.config.fields import NotNegative, OpenShare, Positive, Rate, Scale, Share, Switch, Weight
from shards.registry import Registry

OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class DecoderConfig(ConfigModel):
    """MAE's decoder; the defaults are the published ones."""

    width: Positive = 512
    depth: Positive = 1
    heads: Positive = 16

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f".heads {self.heads} must divide .width {self.width}")
        if self.width % 4:
            raise ValueError(
                f".width {self.width} must be a multiple of 4: positions are sines and cosines of two axes"
            )
        return self


class MaeConfig(ConfigModel):
    """Masked autoencoding. ``ignore_nodata``: missing pixels don't count in the loss. ``spectral_angle``: weight of
    the mean angle in radians between predicted and true spectra, 0 for none; it needs ``norm_pix`` false."""

    name: Literal["mae"] = "mae"
    mask_ratio: OpenFraction = 0.9
    norm_pix: Switch = True
    ignore_nodata: Switch = False
    spectral_angle: Weight = 0.0
    decoder: DecoderConfig = DecoderConfig()

    @model_validator(mode="after")
    def _angles_need_levels(self) -> Self:
        if self.spectral_angle and self.norm_pix:
            raise ValueError(".spectral_angle needs .norm_pix false: a target normalized per patch has no spectrum")
        return self


class MocoConfig(ConfigModel):
    """MoCo-v2 (arXiv 2003.04297). ``queue``: negatives, a multiple of the global batch; ``head_norm``: batch norms
    in the projection head, as the published code has them."""

    name: Literal["moco"]
    temperature: Rate = 0.2
    momentum: Share = 0.999
    queue: Positive = 32768
    hidden: Positive = 2048
    dim: Positive = 128
    head_norm: Switch = False


class LocalCropsConfig(ConfigModel):
    """DINO's small views: how many, of what size in pixels, and their share of the tile's area."""

    count: NotNegative = 0
    size: Positive = 48
    scale: Scale = (0.05, 0.4)


class DinoConfig(ConfigModel):
    """DINO (arXiv 2104.14294). The teacher's momentum rises from ``momentum`` to 1 over the whole training; its
    temperature from ``teacher_temperature`` to ``final_teacher_temperature`` over the first
    ``warmup_temperature_steps``. The head's last layer is frozen for the first ``freeze_last_layer_steps``."""

    name: Literal["dino"]
    hidden: Positive = 2048
    bottleneck: Positive = 256
    prototypes: Positive = 8192
    student_temperature: Rate = 0.1
    teacher_temperature: Rate = 0.04
    final_teacher_temperature: Rate = 0.04
    warmup_temperature_steps: NotNegative = 0
    momentum: Share = 0.996
    centre_momentum: OpenShare = 0.9
    freeze_last_layer_steps: NotNegative = 0
    local_crops: LocalCropsConfig = LocalCropsConfig()


OBJECTIVES: Registry[Any] = Registry("objective")
"""Self-supervised objectives, by name: see ``pretrain.objectives.objective.Objective``."""

OBJECTIVES.add("mae", "pretrain.objectives.mae:MaeObjective", MaeConfig)
OBJECTIVES.add("moco", "pretrain.objectives.moco:MocoObjective", MocoConfig)
OBJECTIVES.add("dino", "pretrain.objectives.dino:DinoObjective", DinoConfig)

if TYPE_CHECKING:
    ObjectiveConfig = MaeConfig | MocoConfig | DinoConfig
else:
    ObjectiveConfig = OBJECTIVES.union()
