"""Registries of pretraining's components, with the built-in ones: see docs/extending.md.

Targets and configs are given by their paths, so that this file imports neither torch nor pydantic.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from shards.registry import Registry

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from pretrain.config.callbacks import CallbackConfig
    from pretrain.data.augment import Augmentation
    from pretrain.loop.callback import Callback
    from pretrain.metrics.loggers.logger import Logger
    from pretrain.models.encoder import Encoder
    from pretrain.models.stem import Stem
    from pretrain.objectives.objective import Objective

ENCODERS: "Registry[Callable[..., Encoder]]" = Registry(
    "encoder", "pretrain.config.model:ModelConfig", "spec_vit_small"
)
"""Each is called with ``bands`` and the fields of its config, ``name`` among them, as keywords."""

for _size in ("tiny", "small", "base", "large", "huge", "giant", "gigantic"):
    ENCODERS.add(f"spec_vit_{_size}", "pretrain.models.published:spec_vit", "pretrain.config.model:ViTConfig")
ENCODERS.add("spec_resnet50", "pretrain.models.published:spec_resnet50")
ENCODERS.add("vit_tiny", "pretrain.models.published:plain_vit", "pretrain.config.model:ViTConfig")
ENCODERS.add("vit_small", "pretrain.models.published:plain_vit", "pretrain.config.model:ViTConfig")
ENCODERS.add("resnet50", "pretrain.models.published:resnet50")

STEMS: "Registry[Callable[..., Stem]]" = Registry("stem")
"""Each is called with ``bands``, ``bn_group`` and the fields of its config but its name, as keywords."""

STEMS.add("spectral_adapter", "pretrain.models.adapter:SpectralAdapter")
STEMS.add("wave", "pretrain.models.wave:WaveStem")
STEMS.add("none", "pretrain.models.stem:NoStem")

AUGMENTATIONS: "Registry[Callable[..., Augmentation]]" = Registry(
    "augmentation", "pretrain.config.data:AugmentConfig", "crop"
)
"""Each is called with its config, the size of a view and a scale (see `Augmentation`)."""

AUGMENTATIONS.add("crop", "pretrain.data.augment:build_crop")

OPTIMIZERS: "Registry[Callable[..., torch.optim.Optimizer]]" = Registry(
    "optimizer", "pretrain.config.optim:OptimConfig", "adamw"
)
"""Each is called with parameter groups and its config."""

OPTIMIZERS.add("adamw", "pretrain.engine.optimizers:adamw")
OPTIMIZERS.add("sgd", "pretrain.engine.optimizers:sgd")

OBJECTIVES: "Registry[type[Objective]]" = Registry("objective", "pretrain.config.objective:ObjectiveConfig", "mae")
OBJECTIVES.add("mae", "pretrain.objectives.mae:MaeObjective", "pretrain.config.objective:MaeConfig")
OBJECTIVES.add("moco", "pretrain.objectives.moco:MocoObjective", "pretrain.config.objective:MocoConfig")
OBJECTIVES.add("dino", "pretrain.objectives.dino:DinoObjective", "pretrain.config.objective:DinoConfig")

LOGGERS: "Registry[type[Logger]]" = Registry("logger", "pretrain.config.loggers:LoggerConfig")
LOGGERS.add("tensorboard", "pretrain.metrics.loggers.tensorboard:TensorBoard")
LOGGERS.add("jsonl", "pretrain.metrics.loggers.json_lines:JsonLines")
LOGGERS.add("wandb", "pretrain.metrics.loggers.wandb:Wandb", "pretrain.config.loggers:WandbConfig")
LOGGERS.add("mlflow", "pretrain.metrics.loggers.mlflow:Mlflow", "pretrain.config.loggers:MlflowConfig")

CALLBACKS: "Registry[Callable[[CallbackConfig, Path], Callback]]" = Registry(
    "callback", "pretrain.config.callbacks:CallbackConfig"
)
CALLBACKS.add("profiler", "pretrain.loop.callbacks.profiler:Profiler", "pretrain.config.callbacks:ProfilerConfig")
