"""How weights move, for how long, and in what batches."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel
from shards.config.fields import Fraction, NotNegative, OpenShare, Positive, Rate, Unique, Weight
from shards.registry import Registry


class OptimConfig(ConfigModel):
    """The optimizer and its learning rates, after a linear warm-up: AdamW, or SGD with momentum ``betas[0]``.

    ``reference_batch``: the global batch that ``lr`` is for, from which it scales linearly; null: as it stands.
    ``schedule``: cosine decay to ``min_lr``, or a tenth at each share of the training in ``milestones``.
    ``layer_decay``: factor of the rate from each block to the one below. ``clip``: largest gradient norm, 0 for none.
    """

    name: str = "adamw"
    lr: Rate = 1e-4
    reference_batch: Positive | None = None
    min_lr: Weight = 0.0
    warmup_steps: NotNegative = 0
    schedule: Literal["cosine", "milestones"] = "cosine"
    milestones: Unique[OpenShare] = ()
    weight_decay: Weight = 0.05
    betas: tuple[OpenShare, OpenShare] = Field(default=(0.9, 0.95), strict=False)
    layer_decay: Fraction = 1.0
    clip: Weight = 1.0

    @model_validator(mode="after")
    def _milestones_are_scheduled(self) -> Self:
        if (self.schedule == "milestones") != bool(self.milestones):
            raise ValueError(
                f".schedule {self.schedule} with .milestones {list(self.milestones)}: schedule milestones needs some, "
                "such as [0.6, 0.8], and schedule cosine has none"
            )
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f".milestones {list(self.milestones)} must ascend: write {sorted(self.milestones)}")
        return self


OPTIMIZERS: Registry[Any] = Registry("optimizer", config=OptimConfig)
"""Functions from parameter groups and the config to a torch optimizer, by name."""

OPTIMIZERS.add("adamw", "pretrain.engine.optimizers:adamw")
OPTIMIZERS.add("sgd", "pretrain.engine.optimizers:sgd")


class TrainConfig(ConfigModel):
    """How long and in what batches, in tiles. Accumulation follows: global_batch / (micro_batch * processes)."""

    steps: Positive
    global_batch: Positive = 256
    micro_batch: Positive = 64
