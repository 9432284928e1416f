"""The typed config of a pretraining run. No torch here: a wrong key is answered before anything heavy loads."""

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pretrain.config.data import AUGMENTATIONS, AugmentConfig, DataConfig, ProbeConfig
from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig
from pretrain.config.objective import DinoConfig, MaeConfig, MocoConfig, ObjectiveConfig
from pretrain.config.optim import OPTIMIZERS, OptimConfig, TrainConfig
from pretrain.config.run import CheckpointConfig, GuardConfig, LogConfig, RunConfig, WatchdogConfig
from pretrain.models.registry import ENCODERS
from shards.config import ConfigModel
from shards.config.fields import PathText

if TYPE_CHECKING:
    AnyAugment = AugmentConfig
    AnyModel = ModelConfig
    AnyOptim = OptimConfig
else:
    AnyAugment, AnyModel, AnyOptim = AUGMENTATIONS.union(), ENCODERS.union(), OPTIMIZERS.union()

DEFAULTS = {"augment": "crop", "model": "spec_vit_small", "objective": "mae", "optim": "adamw"}
"""The implementation of each section that names none."""


class PretrainConfig(ConfigModel):
    """Everything about a run; saved with it as ``config.yaml``.

    ``init``: encoder to begin from, a path or URL of any file that ``load_encoder`` reads; null: drawn from the seed.
    """

    run: RunConfig
    data: DataConfig
    augment: AnyAugment = Field(default={}, validate_default=True)
    model: AnyModel = Field(default={}, validate_default=True)
    objective: ObjectiveConfig = MaeConfig()
    init: PathText | None = None
    optim: AnyOptim = Field(default={}, validate_default=True)
    train: TrainConfig
    engine: EngineConfig = EngineConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    guard: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    log: LogConfig = LogConfig()
    probe: ProbeConfig | None = None

    @field_validator(*DEFAULTS, mode="before")
    @classmethod
    def _default_unless_named(cls, value: Any, info: ValidationInfo) -> Any:
        return {"name": DEFAULTS[str(info.field_name)], **value} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        micro, group, whole = self.train.micro_batch, self.model.bn_group, self.train.global_batch
        if micro % group:
            raise ValueError(f"train.micro_batch {micro} must be a multiple of model.bn_group {group}")
        if whole % micro:
            raise ValueError(f"train.global_batch {whole} must be a multiple of train.micro_batch {micro}")
        return self

    @model_validator(mode="after")
    def _objective_fits_the_model(self) -> Self:
        model, objective = self.model, self.objective
        if isinstance(objective, MaeConfig):
            if not model.is_vit:
                raise ValueError(
                    f"objective mae needs a ViT to mask: model.name {model.name} is none; use moco or dino"
                )
            patches = (model.image_size // model.patch_size) ** 2
            if int(patches * (1 - objective.mask_ratio)) < 1:
                raise ValueError(
                    f"objective.mask_ratio {objective.mask_ratio} leaves none of {patches} patches visible"
                )
        if isinstance(objective, DinoConfig) and objective.local_crops.count and model.is_vit:
            if objective.local_crops.size % model.patch_size:
                raise ValueError(
                    f"model.patch_size {model.patch_size} does not divide local_crops.size {objective.local_crops.size}"
                )
        return self

    @model_validator(mode="after")
    def _queue_fits(self) -> Self:
        objective, train = self.objective, self.train
        if isinstance(objective, MocoConfig):
            if objective.queue % train.global_batch:
                raise ValueError(
                    f"objective.queue {objective.queue} must be a multiple of train.global_batch {train.global_batch}"
                )
            if train.micro_batch < 2 * self.model.bn_group:
                raise ValueError(
                    f"train.micro_batch {train.micro_batch} must be at least two of model.bn_group "
                    f"{self.model.bn_group}: keys are shuffled between groups, or batch norm gives them away"
                )
        return self

    @model_validator(mode="after")
    def _steps_hold_the_schedules(self) -> Self:
        """Where a warm-up outlasts the training, its peak is never reached: no error, but not what was meant either."""
        spans = {"optim.warmup_steps": self.optim.warmup_steps}
        if isinstance(self.objective, DinoConfig):
            names = ("warmup_temperature_steps", "freeze_last_layer_steps")
            spans |= {f"objective.{name}": getattr(self.objective, name) for name in names}
        if longer := [f"{name} {span}" for name, span in spans.items() if span > self.train.steps]:
            raise ValueError(
                f"{' and '.join(longer)} must be at most train.steps {self.train.steps}: lower that, or raise "
                "train.steps"
            )
        return self

    @model_validator(mode="after")
    def _rate_falls(self) -> Self:
        if self.optim.schedule == "cosine" and self.optim.min_lr > self.lr:
            scaled = "" if self.optim.reference_batch is None else " scaled from optim.reference_batch"
            raise ValueError(
                f"optim.min_lr {self.optim.min_lr:g} must be at most the peak learning rate {self.lr:g}, which is "
                f"optim.lr{scaled}"
            )
        return self

    @property
    def lr(self) -> float:
        """The peak learning rate of this batch size."""
        reference = self.optim.reference_batch
        return self.optim.lr if reference is None else self.optim.lr * self.train.global_batch / reference

    def accumulation(self, world_size: int) -> int:
        """Micro batches per step and process; raises ValueError where they don't come out whole."""
        per_round = self.train.micro_batch * world_size
        if self.train.global_batch % per_round:
            raise ValueError(
                f"train.global_batch {self.train.global_batch} must be a multiple of train.micro_batch "
                f"{self.train.micro_batch} x {world_size} processes"
            )
        return self.train.global_batch // per_round
