"""The typed config of a pretraining run. No torch here: a wrong key is answered before anything heavy loads."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel
from shards.selection import OrderConfig, ViewConfig

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]


class RunConfig(ConfigModel):
    """Where a run writes, and what it is seeded with."""

    dir: str
    seed: int = 0
    threads: Positive = 1  # CPU threads per process; launchers differ in what they set


class DataConfig(ConfigModel):
    """What is read. ``holdout`` is the share of locations kept for the validation loss.

    ``shards`` is a folder or a URL. ``stage`` is a node-local folder that shards are copied to during the
    first epoch. ``max_bad_tiles``: damaged tiles that a run replaces by others before it gives up.
    """

    shards: str
    view: ViewConfig = ViewConfig()
    order: OrderConfig = OrderConfig()
    holdout: Share = 0.01
    read_threads: Positive = 4
    prefetch: Positive = 2  # micro batches read ahead
    stage: str | None = None
    stage_quota_gb: Positive | None = None
    max_bad_tiles: Annotated[int, Field(ge=0)] = 100


class AugmentConfig(ConfigModel):
    """Random crop and flips. ``crop_scale``: range of the crop's share of the tile's area, resized to the
    image size; null: crops of exactly the image size, never resampled."""

    crop_scale: tuple[float, float] | None = Field(default=(0.4, 1.0), strict=False)
    flip: bool = True


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
    ] = "spec_vit_small"
    image_size: Positive = 128
    patch_size: Positive = 4
    bn_group: Positive = 8
    attention: Literal["auto", "xformers", "sdpa", "math"] = "auto"

    @model_validator(mode="after")
    def _patch_divides_image(self) -> Self:
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        return self


class DecoderConfig(ConfigModel):
    """MAE's decoder; the defaults are the published ones."""

    width: Positive = 512
    depth: Positive = 1
    heads: Positive = 16


class MaeConfig(ConfigModel):
    """Masked autoencoding."""

    name: Literal["mae"] = "mae"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.9
    norm_pix: bool = True
    decoder: DecoderConfig = DecoderConfig()


class OptimConfig(ConfigModel):
    """AdamW with linear warm-up and cosine decay to ``min_lr``; ``clip`` is the largest gradient norm, 0 for none."""

    lr: Annotated[float, Field(gt=0)] = 1e-4
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    betas: tuple[float, float] = Field(default=(0.9, 0.95), strict=False)
    clip: Annotated[float, Field(ge=0)] = 1.0


class TrainConfig(ConfigModel):
    """How long and in what batches, in tiles. Accumulation follows: global_batch / (micro_batch * processes)."""

    steps: Positive
    global_batch: Positive = 256
    micro_batch: Positive = 64


class EngineConfig(ConfigModel):
    """DeepSpeed. ``precision``: fp32; autocast (bf16 compute, fp32 parameters); bf16 (bf16 parameters, fp32 master)."""

    zero_stage: Literal[0, 1, 2, 3] = 3
    precision: Literal["fp32", "autocast", "bf16"] = "autocast"
    reduce_bucket_size: Positive = 50_000_000
    prefetch_bucket_size: Annotated[int, Field(ge=0)] = 50_000_000
    param_persistence_threshold: Annotated[int, Field(ge=0)] = 100_000

    @model_validator(mode="after")
    def _bf16_needs_a_stage(self) -> Self:
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError("precision bf16 needs zero_stage 1 to 3 (DeepSpeed's stage 0 loses 5 % of the loss there)")
        return self


class CheckpointConfig(ConfigModel):
    """Every how many steps, and how many to keep."""

    every: Positive = 1000
    keep: Positive = 3


class LogConfig(ConfigModel):
    """Every how many steps: training scalars, and validation with its pictures (0: only at the end)."""

    every: Positive = 10
    validate_every: Annotated[int, Field(ge=0)] = 1000


class PretrainConfig(ConfigModel):
    """Everything about a run; saved with it as ``config.yaml``."""

    run: RunConfig
    data: DataConfig
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    objective: MaeConfig = MaeConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        micro, group, whole = self.train.micro_batch, self.model.bn_group, self.train.global_batch
        if micro % group:
            raise ValueError(f"train.micro_batch {micro} must be a multiple of model.bn_group {group}")
        if whole % micro:
            raise ValueError(f"train.global_batch {whole} must be a multiple of train.micro_batch {micro}")
        return self

    @model_validator(mode="after")
    def _something_is_visible(self) -> Self:
        patches, ratio = (self.model.image_size // self.model.patch_size) ** 2, self.objective.mask_ratio
        if int(patches * (1 - ratio)) < 1:
            raise ValueError(f"objective.mask_ratio {ratio} leaves none of {patches} patches visible")
        return self

    def accumulation(self, world_size: int) -> int:
        """Micro batches per step and process; raises ValueError where they don't come out whole."""
        per_round = self.train.micro_batch * world_size
        if self.train.global_batch % per_round:
            raise ValueError(
                f"train.global_batch {self.train.global_batch} must be a multiple of train.micro_batch "
                f"{self.train.micro_batch} x {world_size} processes"
            )
        return self.train.global_batch // per_round
