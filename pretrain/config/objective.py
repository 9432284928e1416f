"""What a run minimizes: masked autoencoding, MoCo, DINO, or an objective of a plugin."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel, NamedConfig
from shards.config.fields import Fraction, NotNegative, OpenShare, Positive, Rate, Scale, Share, Switch, Weight

if TYPE_CHECKING:
    from pretrain.config import PretrainConfig

OpenFraction = Annotated[float, Field(gt=0, lt=1)]


class ObjectiveConfig(NamedConfig):
    """Base of the configs of objectives."""

    def check(self, config: "PretrainConfig") -> None:
        """Raise ValueError, with the dotted keys, if the rest of a run's config does not fit this objective."""


class DecoderConfig(ConfigModel):
    """MAE's decoder; the defaults are the published ones."""

    width: Positive = 512
    """Features of a token."""
    depth: Positive = 1
    """Transformer blocks."""
    heads: Positive = 16
    """Attention heads of a block."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f".heads {self.heads} must divide .width {self.width}")
        if self.width % 4:
            raise ValueError(
                f".width {self.width} must be a multiple of 4: positions are sines and cosines of two axes"
            )
        return self


class MaeConfig(ObjectiveConfig):
    """Masked autoencoding (arXiv 2111.06377)."""

    name: Literal["mae"] = "mae"
    """Name of the objective."""
    mask_ratio: OpenFraction = 0.9
    """Share of the patches that the encoder does not see."""
    decode_share: Fraction = 1.0
    """Share of the masked patches that a training step predicts, drawn for each sample; validation predicts all."""
    norm_pix: Switch = True
    """Predict patches normalized by their own mean and standard deviation."""
    ignore_nodata: Switch = False
    """Leave missing pixels out of the loss."""
    spectral_angle: Weight = 0.0
    """Weight of the mean angle between predicted and true spectra, in radians; needs ``norm_pix: false``."""
    masking: Literal["spatial", "spectral", "decoupled", "tubes"] = "spatial"
    """What is hidden: patches; bands; both, independently; blocks of 2 x 2 patches. Bands need ``model.stem: wave``."""
    band_ratio: OpenFraction = 0.5
    """Share of the bands hidden by ``masking`` spectral and decoupled, in runs of neighbors."""
    decoder: DecoderConfig = DecoderConfig()
    """The network that predicts pixels, discarded after training."""

    @model_validator(mode="after")
    def _angles_need_levels(self) -> Self:
        if self.spectral_angle and self.norm_pix:
            raise ValueError(".spectral_angle needs .norm_pix false: a target normalized per patch has no spectrum")
        return self

    @property
    def hides_bands(self) -> bool:
        """Whether bands are hidden from the encoder."""
        return self.masking in ("spectral", "decoupled")

    def check(self, config: "PretrainConfig") -> None:
        """Require a ViT, at least one visible patch, and a stem that can hide bands where they are hidden."""
        model = config.model
        if self.hides_bands and not model.by_wavelength:
            raise ValueError(f"objective.masking {self.masking} needs model.stem wave: other stems take all bands")
        if not model.is_vit:
            raise ValueError(f"objective mae needs a ViT, which model.name {model.name} is not: use moco or dino")
        patches = (model.image_size // model.patch_size) ** 2
        if int(patches * (1 - self.mask_ratio)) < 1:
            raise ValueError(f"objective.mask_ratio {self.mask_ratio} leaves none of the {patches} patches visible")


class MocoConfig(ObjectiveConfig):
    """MoCo-v2 (arXiv 2003.04297)."""

    name: Literal["moco"] = "moco"
    """Name of the objective."""
    temperature: Rate = 0.2
    """Divisor of the similarities."""
    momentum: Share = 0.999
    """Share of the key encoder's weights that one step keeps."""
    queue: Positive = 32768
    """Negatives: keys of earlier steps, a multiple of ``train.global_batch``."""
    hidden: Positive = 2048
    """Width of the projection head's hidden layer."""
    dim: Positive = 128
    """Features of a key."""
    head_norm: Switch = False
    """Batch norms in the projection head, as in the published code."""

    def check(self, config: "PretrainConfig") -> None:
        """Require a queue of whole batches, and batches in which keys can be shuffled."""
        train, group = config.train, config.model.bn_group
        if self.queue % train.global_batch:
            raise ValueError(
                f"objective.queue {self.queue} must be a multiple of train.global_batch {train.global_batch}"
            )
        if train.micro_batch < 2 * group:
            raise ValueError(
                f"train.micro_batch {train.micro_batch} must be at least two of model.bn_group {group}: keys are "
                "shuffled between groups, or batch norm leaks the answer"
            )


class LocalCropsConfig(ConfigModel):
    """DINO's small views."""

    count: NotNegative = 0
    """Views of a tile."""
    size: Positive = 48
    """Side of a view, in pixels."""
    scale: Scale = (0.05, 0.4)
    """Range of a view's share of the tile's area."""


class DinoConfig(ObjectiveConfig):
    """DINO (arXiv 2104.14294)."""

    RENAMED: ClassVar[Mapping[str, str]] = {"centre_momentum": "center_momentum"}

    name: Literal["dino"] = "dino"
    """Name of the objective."""
    hidden: Positive = 2048
    """Width of the head's hidden layers."""
    bottleneck: Positive = 256
    """Width of the head's last hidden layer."""
    prototypes: Positive = 8192
    """Outputs of the head."""
    student_temperature: Rate = 0.1
    """Divisor of the student's outputs."""
    teacher_temperature: Rate = 0.04
    """Divisor of the teacher's outputs at step 0."""
    final_teacher_temperature: Rate = 0.04
    """Divisor of the teacher's outputs after ``warmup_temperature_steps``."""
    warmup_temperature_steps: NotNegative = 0
    """Steps in which the teacher's temperature changes linearly."""
    momentum: Share = 0.996
    """Share of the teacher's weights that step 0 keeps; rises to 1 over the training."""
    center_momentum: OpenShare = 0.9
    """Share of the center of the teacher's outputs that one step keeps."""
    freeze_last_layer_steps: NotNegative = 0
    """Steps at the beginning in which the head's last layer is frozen."""
    local_crops: LocalCropsConfig = LocalCropsConfig()
    """Small views beside the two large ones."""

    def check(self, config: "PretrainConfig") -> None:
        """Require local crops of whole patches, and schedules that end within the training."""
        model, local = config.model, self.local_crops
        if local.count and model.is_vit and local.size % model.patch_size:
            raise ValueError(f"model.patch_size {model.patch_size} does not divide local_crops.size {local.size}")
        config.train.check_spans(
            {
                "objective.warmup_temperature_steps": self.warmup_temperature_steps,
                "objective.freeze_last_layer_steps": self.freeze_last_layer_steps,
            }
        )
