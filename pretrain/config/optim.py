"""How weights move, for how long, and in what batches."""

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, model_validator

from shards.config import ConfigModel, NamedConfig
from shards.config.fields import Fraction, NotNegative, OpenShare, Positive, Rate, Unique, Weight


class OptimConfig(NamedConfig):
    """The optimizer and its learning rate. Optimizers with options of their own extend this class."""

    name: str = "adamw"
    """The optimizer: adamw, sgd (with momentum ``betas[0]``), or one of a plugin."""
    lr: Rate = 1e-4
    """Peak learning rate, for ``reference_batch`` if it is given."""
    reference_batch: Positive | None = None
    """Global batch that ``lr`` is for, from which it scales linearly; null uses ``lr`` unchanged."""
    min_lr: Weight = 0.0
    """Learning rate at the end of the cosine schedule."""
    warmup_steps: NotNegative = 0
    """Steps of linear warm-up from 0 to the peak."""
    schedule: Literal["cosine", "milestones"] = "cosine"
    """Cosine decay to ``min_lr``, or division by ten at each of ``milestones``."""
    milestones: Unique[OpenShare] = ()
    """Shares of the training at which the rate is divided by ten, ascending."""
    weight_decay: Weight = 0.05
    """Decoupled weight decay; biases, norms and tokens have none."""
    betas: tuple[OpenShare, OpenShare] = Field(default=(0.9, 0.95), strict=False)
    """Decay of the running means of gradients and of their squares."""
    layer_decay: Fraction = 1.0
    """Factor of the learning rate from each block to the one below."""
    clip: Weight = 1.0
    """Largest norm of the gradient; 0 for none."""

    @model_validator(mode="after")
    def _milestones_are_scheduled(self) -> Self:
        if (self.schedule == "milestones") != bool(self.milestones):
            raise ValueError(
                f".schedule {self.schedule} with .milestones {list(self.milestones)}: schedule milestones needs values "
                "such as [0.6, 0.8], and schedule cosine takes none"
            )
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f".milestones {list(self.milestones)} must ascend: write {sorted(self.milestones)}")
        return self


class TrainConfig(ConfigModel):
    """How long and in what batches. Accumulation follows: ``global_batch / (micro_batch * processes)``."""

    steps: Positive
    """Optimizer steps."""
    global_batch: Positive = 256
    """Tiles of one step, over all processes."""
    micro_batch: Positive = 64
    """Tiles of one forward and backward pass of a process."""

    def check_spans(self, spans: Mapping[str, int]) -> None:
        """Raise ValueError if a schedule, by its key, is longer than the training: its end is never reached."""
        if longer := [f"{key} {span}" for key, span in spans.items() if span > self.steps]:
            raise ValueError(
                f"{' and '.join(longer)} must be at most train.steps {self.steps}: lower that, or raise train.steps"
            )
