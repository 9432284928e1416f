"""The typed config of a pretraining run. No torch here: a wrong key is answered before anything heavy loads."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from pretrain.config.callbacks import CallbackConfig
from pretrain.config.data import AugmentConfig, DataConfig, ProbeConfig
from pretrain.config.engine import EngineConfig
from pretrain.config.model import ModelConfig, ViTConfig
from pretrain.config.objective import MaeConfig, ObjectiveConfig
from pretrain.config.optim import OptimConfig, TrainConfig
from pretrain.config.run import CheckpointConfig, GuardConfig, LogConfig, RunConfig, WatchdogConfig
from pretrain.registries import AUGMENTATIONS, CALLBACKS, ENCODERS, OBJECTIVES, OPTIMIZERS
from shards.config import ConfigModel
from shards.config.fields import PathText, Plugins


class PretrainConfig(ConfigModel):
    """Everything about a run; saved with it as ``config.yaml``."""

    plugins: Plugins = ()
    """Modules and .py files that register encoders, objectives and the like; imported before the rest is read."""
    run: RunConfig
    """Where the run writes, and its seed."""
    data: DataConfig
    """What is read."""
    augment: Annotated[AugmentConfig, AUGMENTATIONS] = AugmentConfig()
    """How views of a tile are cut."""
    model: Annotated[ModelConfig, ENCODERS] = ViTConfig(name="spec_vit_small")
    """The encoder."""
    objective: Annotated[ObjectiveConfig, OBJECTIVES] = MaeConfig()
    """What is minimized."""
    init: PathText | None = None
    """Encoder to begin from: the path or URL of any file that ``load_encoder`` reads; null draws weights from the
    seed."""
    optim: Annotated[OptimConfig, OPTIMIZERS] = OptimConfig()
    """How weights move."""
    train: TrainConfig
    """How long, and in what batches."""
    engine: EngineConfig = EngineConfig()
    """How DeepSpeed divides and computes the model."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is saved, and how a run continues."""
    guard: GuardConfig = GuardConfig()
    """Which steps are skipped."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """Limits of time."""
    log: LogConfig = LogConfig()
    """What is logged."""
    probe: ProbeConfig | None = None
    """Evaluation of the encoder during training, on labeled shards; null for none."""
    callbacks: tuple[Annotated[CallbackConfig, CALLBACKS], ...] = Field(default=(), strict=False)
    """Callbacks that the training loop has besides its own, called in this order."""

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        micro, group, global_batch = self.train.micro_batch, self.model.bn_group, self.train.global_batch
        if micro % group:
            raise ValueError(f"train.micro_batch {micro} must be a multiple of model.bn_group {group}")
        if global_batch % micro:
            raise ValueError(f"train.global_batch {global_batch} must be a multiple of train.micro_batch {micro}")
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Self:
        self.objective.check(self)
        return self

    @model_validator(mode="after")
    def _spectra_have_wavelengths(self) -> Self:
        if self.augment.sensors is not None and not self.model.by_wavelength:
            raise ValueError("augment.sensors needs model.stem wave: other stems take the bands of one sensor")
        return self

    @model_validator(mode="after")
    def _probe_has_shards(self) -> Self:
        probed = [number for number, source in enumerate(self.data.sources) if source.probe is not None]
        if self.probe is None:
            if probed:
                raise ValueError(f"data.sources.{probed[0]}.probe needs the section probe: add probe: {{}}")
        elif self.data.sources and (self.probe.shards is not None or not probed):
            raise ValueError("probe.shards is for data.shards: name labeled shards as data.sources.0.probe and so on")
        elif not self.data.sources and self.probe.shards is None:
            raise ValueError("probe.shards is missing: name a folder of labeled shards")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        self.train.check_spans({"optim.warmup_steps": self.optim.warmup_steps})
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
        """Return the micro batches per step and process; raise ValueError if they are not whole."""
        per_round = self.train.micro_batch * world_size
        if self.train.global_batch % per_round:
            raise ValueError(
                f"train.global_batch {self.train.global_batch} must be a multiple of train.micro_batch "
                f"{self.train.micro_batch} x {world_size} processes"
            )
        return self.train.global_batch // per_round
